"""What can be done with what lies in a directory: `shoal verify`, `audit`, `average`, `own`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from shoal.node.cli_options import AsJson, answer
from shoal.node.errors import DamagedError
from shoal.node.progress import shown, tell


def verify(
    directory: Annotated[Path, typer.Argument(help="a checkpoint, or a node's directory")],
    trust: Annotated[
        str | None, typer.Option(metavar="MESH", help="mesh id in hex, or a genesis.json")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove a checkpoint from its directory alone.

    Needs no network and no node. Exit code 0: proved; 4: refused, with the reason; 2: there is
    nothing to check. Without --trust it believes the genesis in the directory and prints the mesh
    id for you to compare.

    Example: shoal verify runs/mesh/node0/checkpoints/3 --trust runs/mesh/node0/genesis/genesis.json
    """
    from shoal.node.checkpoint_dirs import newest_checkpoint
    from shoal.node.verify import trusted_mesh, verify_checkpoint
    from shoal.node.verify_formats import Refused

    mesh_id = trusted_mesh(trust) if trust is not None else None
    if (directory / "checkpoints").is_dir():
        directory = newest_checkpoint(directory)
    try:
        with shown("reading"):
            proof = verify_checkpoint(directory, mesh_id, tell=tell)
    except Refused as refusal:
        if as_json:
            facts = {"proved": False, "reason": refusal.reason, "message": str(refusal)}
            print(json.dumps(facts, indent=2))
        raise
    answer(proof.to_json(), proof.lines(), as_json=as_json)


def audit(
    directory: Annotated[Path, typer.Argument(help="a checkpoint, or a node's directory")],
    previous: Annotated[
        Path | None, typer.Option(help="the checkpoint before it, if it lies elsewhere")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay the signed deltas of checkpoints and show who contributed what.

    Starts from the checkpoint before (height 1: from the genesis), applies every delta of the cut
    and compares the root with the certified one. Exit code 0: reproduced; 4: not, with what is
    wrong; 2: something that it needs was not kept.

    Example: shoal audit runs/mesh/node0
    """
    with shown("loading"):
        from shoal.node.audit import audit_all

        audits, skipped = audit_all(directory, previous)
    if as_json:
        facts = {"audits": [each.to_json() for each in audits], "skipped": skipped}
        print(json.dumps(facts, indent=2))
    else:
        print("\n\n".join("\n".join(each.lines()) for each in audits))
        for height, why in skipped.items():
            print(f"\ncheckpoint {height} was not audited: {why}")
    if wrong := [each for each in audits if not each.reproduced]:
        first = wrong[0].problems[0]
        raise DamagedError(
            f"checkpoint {wrong[0].height} does not follow from its deltas: "
            f"{first.reason}: {first.detail}"
        )


def average(
    directory: Annotated[Path, typer.Argument(help="a node's directory")],
    target: Annotated[Path, typer.Argument(help="the directory to make")],
    last: Annotated[int, typer.Option(min=2, max=1000, help="of how many newest, at most")] = 3,
    trust: Annotated[
        str | None, typer.Option(metavar="MESH", help="mesh id in hex, or a genesis.json")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the mean of the newest checkpoints, often better than each of them.

    It has less of the noise of the last steps, while the learning rate is high; where the model
    still learns much from one checkpoint to the next, it lags behind instead. Verifies every part
    first; the result opens like a checkpoint, but has no certificate of its own. A node keeps
    retention.keep_whole checkpoints to take the mean of.

    Example: shoal average runs/mesh/node0 runs/averaged
    """
    from shoal.node.verify import trusted_mesh

    mesh_id = trusted_mesh(trust) if trust is not None else None
    with shown("loading"):
        from shoal.node.average import average, facts_of

        proofs = average(directory, target, last=last, trust=mesh_id, tell=tell)
    facts = facts_of(proofs)
    heights = ", ".join(str(proof.record.height) for proof in proofs)
    line = f"{target} is the mean of the certified checkpoints {heights} of mesh {facts['mesh']}"
    answer({"directory": str(target), **facts}, [line], as_json=as_json)


def own(
    directory: Annotated[Path, typer.Argument(help="a node's directory")],
    target: Annotated[Path, typer.Argument(help="the directory to make")],
    as_json: AsJson = False,
) -> None:
    """Make a model of what this node knows itself, said to the mesh or not.

    It is the mean of the node's own weights over its last rounds (train.own_mean_rounds in its
    node.toml), often the better model where the mesh's budget is small. It opens like a checkpoint,
    and nobody but this node vouches for it.

    Example: shoal own runs/mesh/node0 runs/own
    """
    with shown("loading"):
        from shoal.node.own_model import own_model

        facts = own_model(directory, target)
    line = f"{target} is the mean of this node's own weights up to its round {facts['round']}"
    answer({"directory": str(target), **facts}, [line], as_json=as_json)
