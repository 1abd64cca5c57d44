"""`shoal dashboard`: the mesh as a page in a browser."""

import asyncio
from typing import Annotated

import typer

from shoal.node.addresses import DEFAULT_DASHBOARD, DEFAULT_INSPECT
from shoal.node.cli_options import Target


def dashboard(
    target: Target = DEFAULT_INSPECT,
    listen: Annotated[str, typer.Option(help="loopback host:port of the page")] = DEFAULT_DASHBOARD,
) -> None:
    """Show the mesh as a page in a browser, until Ctrl-C.

    With a node's directory all members are asked, as that member; with an address that node alone.

    Example: shoal dashboard runs/mesh/node0
    """
    from shoal.node.dashboard import serve
    from shoal.node.mesh_watch import find_target

    def ready(address: str) -> None:
        print(f"open {address} in a browser on this machine", flush=True)

    asyncio.run(serve(find_target(target), listen, ready))


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(dashboard)
