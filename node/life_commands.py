"""What a person asks about the life of the mesh: peers, explain."""

import asyncio
import json
from typing import Annotated

import typer

from shoal.node.addresses import DEFAULT_INSPECT
from shoal.node.cli_options import AsJson, Target
from shoal.node.errors import UserError


def peers(target: Target = DEFAULT_INSPECT, as_json: AsJson = False) -> None:
    """List a node's peers: alive, suspect or dead, why, and what went wrong.

    Example: shoal peers runs/mesh/node0
    """
    from shoal.node.explain_view import life_table
    from shoal.node.inspect_client import as_plain, fetch_status
    from shoal.node.views import make_console, peers_table

    reply = asyncio.run(fetch_status(target))
    if as_json:
        print(json.dumps([as_plain(each) for each in reply.peers], indent=2))
        return
    console = make_console()
    console.print(peers_table(reply.peers))
    if any(peer.liveness for peer in reply.peers):
        console.print()
        console.print(life_table(reply.peers))


def explain(
    number: Annotated[int, typer.Argument(metavar="ROUND", min=1, help="a round of any member")],
    target: Target = DEFAULT_INSPECT,
    as_json: AsJson = False,
) -> None:
    """Say who was waited for in the checkpoint of a round, how long, and what was left out.

    Example: shoal explain 17 runs/mesh/node0
    """
    from shoal.node.explain_view import explain_view
    from shoal.node.inspect_client import as_plain, fetch_explanation
    from shoal.node.views import make_console

    reply = asyncio.run(fetch_explanation(target, number))
    if not reply.known:
        span = f"it can tell of rounds {reply.oldest_round} to {reply.newest_round}"
        raise UserError(
            f"the node at {target} knows nothing of round {number}; "
            f"{span if reply.newest_round else 'it has seen no checkpoint yet'}"
        )
    if as_json:
        print(json.dumps(as_plain(reply), indent=2, allow_nan=False))
    else:
        make_console().print(explain_view(reply))


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (peers, explain):
        app.command()(command)
