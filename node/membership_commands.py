"""What validators decide about the mesh: leave, promote, demote, expel, parameters."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from shoal.node.cli_options import AsJson, answer

Directory = Annotated[Path, typer.Argument(help="this node's directory")]
Member = Annotated[str, typer.Argument(help="the other's node id, or the start of it")]
Force = Annotated[bool, typer.Option("--force", help="even where no failure is tolerated then")]


def leave(
    directory: Directory,
    force: Force = False,
    handover: Annotated[
        bool, typer.Option(help="first see to it that others keep what this node keeps")
    ] = True,
    limit: Annotated[
        float, typer.Option(min=1, max=86_400, help="seconds that handing over may take")
    ] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Leave the mesh for good; the running node stops when it is not needed any more.

    Before it leaves, the others make the copies of old checkpoints that will be theirs.

    Example: shoal leave runs/fifth
    """
    from shoal.node import operator
    from shoal.node.handover import Outstanding

    told = 0

    def report(left: Outstanding) -> None:
        nonlocal told
        if left.pieces not in (0, told):
            print(f"handing over: {left.pieces} pieces to go", file=sys.stderr, flush=True)
        told = left.pieces

    limit_s = limit if handover else 0.0
    _say(operator.leave(directory, force=force, limit_s=limit_s, report=report), as_json)


def promote(directory: Directory, member: Member, as_json: AsJson = False) -> None:
    """As a validator, approve that a member becomes one. A quorum has to.

    Example: shoal promote runs/mesh/node0 3f2a
    """
    from shoal.consensus.changes import ChangeKind
    from shoal.node import operator

    _say(operator.approve(directory, ChangeKind.PROMOTE, member), as_json)


def demote(
    directory: Directory, member: Member, force: Force = False, as_json: AsJson = False
) -> None:
    """As a validator, approve that another one only trains from now on. A quorum has to.

    Example: shoal demote runs/mesh/node0 3f2a
    """
    from shoal.consensus.changes import ChangeKind
    from shoal.node import operator

    _say(operator.approve(directory, ChangeKind.DEMOTE, member, force=force), as_json)


def expel(
    directory: Directory, member: Member, force: Force = False, as_json: AsJson = False
) -> None:
    """As a validator, approve that a member is put out for good. A quorum has to.

    Example: shoal expel runs/mesh/node0 3f2a
    """
    from shoal.consensus.changes import ChangeKind
    from shoal.node import operator

    _say(operator.approve(directory, ChangeKind.EXPEL, member, force=force), as_json)


def parameters(
    directory: Directory,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="a new value to approve")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    as_json: AsJson = False,
) -> None:
    """Show the mesh's parameters; with --set approve new ones.

    They come into force at the next epoch, when a quorum of the validators approves the same.

    Example: shoal parameters runs/mesh/node0 --set clip_factor=3 --set rounds_per_checkpoint=16
    """
    from shoal.node import operator
    from shoal.node.parameter_change import answer_lines, as_plain, parse_settings

    if settings:
        _say(operator.approve_parameters(directory, parse_settings(settings)), as_json)
        return
    found = operator.mesh_parameters(directory)
    answer(as_plain(found), answer_lines(found), as_json=as_json)


def _say(sentence: str, as_json: bool) -> None:
    answer({"answer": sentence}, [sentence], as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (leave, promote, demote, expel, parameters):
        app.command()(command)
