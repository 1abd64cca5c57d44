"""`shoal verify` and `shoal audit`: what a stranger asks of a checkpoint directory."""

import json
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="one JSON object instead of lines")]


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
        proof = verify_checkpoint(directory, mesh_id)
    except Refused as refusal:
        if as_json:
            facts = {"proved": False, "reason": refusal.reason, "message": str(refusal)}
            print(json.dumps(facts, indent=2))
        raise
    print(json.dumps(proof.to_json(), indent=2) if as_json else "\n".join(proof.lines()))
