"""`shoal doctor`: the command; what it looks at is in doctor.py."""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from shoal.node.cli_options import AsJson
from shoal.node.config import CONFIG_NAME
from shoal.node.doctor_findings import Finding, Report, problem
from shoal.node.progress import shown


def doctor(
    directory: Annotated[
        Path | None,
        typer.Argument(help="a node's directory; default: this one if it has a node.toml"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="warnings count: exit code 5")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong with a node, its machine and its place in the mesh.

    Changes nothing, needs no root, and takes less than 15 seconds. Without a directory it looks at
    the machine alone. Whether the mesh can reach the node is asked of other members, while it runs.

    Exit codes: 0 no problem, 5 warnings and --strict, 6 problems. Others are errors of the command.

    Example: shoal doctor runs/mesh/node0
    """
    if directory is None and Path(CONFIG_NAME).is_file():
        directory = Path()
    with shown("looking"):
        report = _examine(directory)
    if as_json:
        print(json.dumps(report.as_plain(strict=strict), indent=2, allow_nan=False))
    else:
        from shoal.node.doctor_view import print_report
        from shoal.node.views import make_console

        print_report(make_console(), report)
    raise typer.Exit(report.exit_code(strict=strict))


def _examine(directory: Path | None) -> Report:
    try:
        from shoal.node.doctor import examine
    except ImportError as error:
        # The rest cannot be looked at without it, and that is what is wrong.
        return Report(
            directory=str(directory or ""),
            node_id="",
            mesh_id="",
            running=None,
            seconds=0.0,
            findings=(_broken(error),),
        )
    return asyncio.run(examine(directory.absolute() if directory is not None else None))


def _broken(error: ImportError) -> Finding:
    from shoal.node.doctor_machine import INSTALL

    return problem("libraries", f"{error.name or 'a library'} does not load: {error}", INSTALL)


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(doctor)
