"""How one more node comes into a mesh: `shoal invite` on a member, `shoal join` on the newcomer."""

import json
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from shoal.node.cli_options import AsJson, Device, Overrides, PresetFile, parse_overrides
from shoal.node.progress import shown


class Role(StrEnum):
    """What an invitation allows, as a person writes it."""

    MEMBER = "member"
    VALIDATOR = "validator"


def invite(
    directory: Annotated[Path, typer.Argument(help="the directory of a running member")] = Path(),
    role: Annotated[Role, typer.Option(help="whether it may also be willing to vote")] = (
        Role.MEMBER
    ),
    ttl: Annotated[str, typer.Option(help="how long it is good: 30m, 24h, 7d")] = "24h",
    uses: Annotated[int, typer.Option(min=1, max=255, help="how many nodes it lets in")] = 1,
    as_json: AsJson = False,
) -> None:
    """Print one line with which a new node may join.

    Send it to whoever runs that node, by a way that others cannot read: who has it can use it up.

    Example: shoal invite runs/mesh/node0 --role validator --ttl 1h
    """
    from shoal.consensus.invitations import InvitedRole
    from shoal.node import inviting
    from shoal.node.invitations import as_line

    made = inviting.invite(
        directory, role=InvitedRole[role.name], ttl_ms=inviting.parse_ttl(ttl), uses=uses
    )
    if as_json:
        print(json.dumps(inviting.as_plain(made)))
        return
    print(as_line(made), flush=True)
    print("\n".join(inviting.explanation(made)), file=sys.stderr)


def join(
    directory: Annotated[Path, typer.Option("--dir", help="a new directory for this node")],
    address: Annotated[
        str | None,
        typer.Argument(help="host:port where a member takes newcomers; default: the inviter's"),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(metavar="LINE", help="what `shoal invite` printed; default: the one in --dir"),
    ] = None,
    trust_id: Annotated[
        str | None,
        typer.Option("--trust-id", metavar="ID", help="the member at ADDRESS, if not the inviter"),
    ] = None,
    first_use: Annotated[
        bool, typer.Option("--insecure-first-use", help="trust whoever answers there, this once")
    ] = False,
    mesh: Annotated[str | None, typer.Option(help="mesh id that it must be, in hex")] = None,
    data: Annotated[str, typer.Option(help="a path, or builtin:I/N")] = "builtin:0/1",
    base: Annotated[
        Path | None,
        typer.Option(help="directory of the model that the mesh trains adapters of, or hub:NAME"),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="MODULE:CLASS", help="the task that the mesh trains")
    ] = None,
    listen: Annotated[str | None, typer.Option(help="host:port; default: a free port")] = None,
    advertise: Annotated[str, typer.Option(help="host:port that others dial")] = "",
    device: Device = None,
    preset: PresetFile = None,
    start: Annotated[bool, typer.Option(help="run the node when it has the mesh")] = True,
    settings: Overrides = [],  # noqa: B006 - typer reads the default, nobody changes it
) -> None:
    """Join a running mesh with an invitation and train with it.

    Fetches the newest checkpoint and what came after it, verifies both, and trains on.

    Example: shoal join --token shoal1.AAAA... --dir runs/fifth --data my-texts/
    """
    from shoal.node.trainer_child import training_child
    from shoal.training.process import loading

    # Without a thread of its own: the training process is forked off below.
    with shown("loading", still=True), loading():
        from shoal.node.provision import base_setting, join_and_configure, planned_settings

    chosen = {"train.device": device, "train.base": base_setting(base), "train.task": task}
    flags = {**chosen, **parse_overrides(settings)}
    train = planned_settings(preset, flags).train
    # The training process loads torch while the mesh is fetched.
    with training_child(train) if start else nullcontext() as child:
        with shown("looking for a member"):
            loaded = join_and_configure(
                address,
                directory,
                token=token,
                trust_id=trust_id,
                first_use=first_use,
                mesh_id=mesh,
                data=data,
                listen=listen,
                advertise=advertise,
                preset=preset,
                flags=flags,
            )
        print(f"ready; start it again later with: shoal run {directory}", flush=True)
        if start:
            from shoal.node.daemon import run as run_daemon

            raise typer.Exit(run_daemon(loaded, child))


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (invite, join):
        app.command()(command)
