"""`shoal runs`: what nodes did in their runs, read from their directories."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal.node.cli_options import AsJson
from shoal.node.errors import UserError

AsCsv = Annotated[bool, typer.Option("--csv", help="lines of CSV instead of a table")]
RUN_HELP = "a node's directory (its newest run), DIR:NUMBER, or a file of DIR/runs"

runs = typer.Typer(
    name="runs",
    help="What nodes did: list their runs, show one, compare several.",
    no_args_is_help=True,
)


@runs.command("list")
def list_runs(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR...", help="nodes' directories, or one that holds such"),
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List the runs of nodes, of those that run as well.

    Example: shoal runs list runs/mesh
    """
    from shoal.node.runs_report import runs_under, summary

    found = runs_under(directories or [Path()])
    if not _printed([summary(run) for run in found], as_json=as_json, as_csv=as_csv):
        from shoal.node.runs_view import runs_table
        from shoal.node.views import make_console

        make_console().print(runs_table(found))


@runs.command()
def show(
    reference: Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)],
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="a line of CSV for each round")] = False,
) -> None:
    """Show one run.

    How it went, its loss over time, its checkpoints, and what it was configured with.

    Example: shoal runs show runs/mesh/node0
    """
    from dataclasses import asdict

    from shoal.node.runs_report import configuration, find_run, round_records, summary

    run = find_run(reference)
    if as_csv:
        _printed(round_records(run), as_json=as_json, as_csv=True)
    elif as_json:
        whole = {
            **summary(run),
            "configuration": configuration(run),
            "rounds": [asdict(row) for row in run.rounds],
            "checkpoints": [
                {**asdict(row), "held_out_loss": run.held_out.get(row.height)}
                for row in run.checkpoints
            ],
        }
        print(json.dumps(whole, indent=2, allow_nan=False))
    else:
        from shoal.node.runs_view import run_view
        from shoal.node.views import make_console

        make_console().print(run_view(run))


@runs.command()
def compare(
    references: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help=RUN_HELP)],
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Compare runs: what they were given differently, and what came of it.

    Losses are compared where all of them have been: after as many tokens, at the same height.

    Example: shoal runs compare runs/mesh/node0:1 runs/mesh/node0:2
    """
    from shoal.node.runs_report import comparison, differences, find_run

    if len(references) < 2:
        raise UserError("name two runs or more: shoal runs compare RUN RUN...")
    found = [find_run(reference) for reference in references]
    records = comparison(found)
    if as_json and not as_csv:
        both = {"runs": records, "differences": differences(found)}
        print(json.dumps(both, indent=2, allow_nan=False))
    elif not _printed(records, as_json=as_json, as_csv=as_csv):
        from shoal.node.runs_view import comparison_view
        from shoal.node.views import make_console

        make_console().print(comparison_view(found))


def _printed(records: Sequence[Mapping[str, Any]], *, as_json: bool, as_csv: bool) -> bool:
    """Print records for programs, where one of the forms is asked for."""
    if as_json and as_csv:
        raise UserError("say either --json or --csv, not both")
    if as_json:
        print(json.dumps(records, indent=2, allow_nan=False))
    elif as_csv and records:
        writer = csv.DictWriter(sys.stdout, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return as_json or as_csv


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(runs, name="runs")
