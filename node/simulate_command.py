"""`shoal simulate`: the command; what it does is in simulate.py."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.node.cli_options import AsJson
from shoal.node.errors import UserError

if TYPE_CHECKING:
    from shoal.node.simulate_plan import Plan


Stragglers = Annotated[float, typer.Option(min=0.0, max=1.0, help="share of peers 5 times slower")]
Fast = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="share of peers that make 4 times the steps")
]
EpochRounds = Annotated[
    int | None,
    typer.Option(min=1, help="rounds between two agreed models; 5, or 20 for neighbours"),
]
NormaliseSteps = Annotated[
    bool, typer.Option("--normalise-steps", help="a delta counts as if it had the usual steps")
]


def simulate(
    strategy: Annotated[
        str, typer.Option(help="delta-log, choco, gasloc, noloco, diloco, dpsgd or isolated")
    ] = "delta-log",
    peers: Annotated[int, typer.Option(min=2, max=1024)] = 16,
    topology: Annotated[
        str, typer.Option(help="ring, torus, exponential, random-regular or complete")
    ] = "random-regular",
    degree: Annotated[int, typer.Option(help="links of each peer in random-regular")] = 4,
    rounds: Annotated[int, typer.Option(min=1, max=100_000)] = 50,
    local_steps: Annotated[int, typer.Option(min=1, help="AdamW steps of a round")] = 10,
    density: Annotated[
        float | None, typer.Option(min=0.0002, max=1.0, help="share of values in a message")
    ] = None,
    drop: Annotated[float, typer.Option(min=0.0, max=0.95, help="share of messages lost")] = 0.0,
    churn: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="share of peers that leave each epoch")
    ] = 0.0,
    stragglers: Stragglers = 0.0,
    epoch_rounds: EpochRounds = None,
    fast: Fast = 0.0,
    normalise_steps: NormaliseSteps = False,
    attack: Annotated[
        str, typer.Option(help="none, sign-flip, noise, ipm, alie, dissensus or absent")
    ] = "none",
    attackers: Annotated[int, typer.Option(min=0, help="how many of the peers lie")] = 0,
    robust: Annotated[
        str,
        typer.Option(help="auto, none, clip (trust = false), aligned, trust, cs+, clipped-gossip"),
    ] = "auto",
    hidden: Annotated[int, typer.Option(min=4, max=4096, help="units of the model")] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=1, max=256, help="of this process")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="directory for rounds.csv, summary.json and plots")
    ] = None,
    plots: Annotated[bool, typer.Option("--plots", help="draw them, into --out")] = False,
    as_json: AsJson = False,
) -> None:
    """Train with many simulated peers.

    One process and virtual time, but the real strategies, codec and anchors, on the built-in text.
    Losses are held-out, in nats per character.

    Example: shoal simulate --peers 64 --drop 0.3 --out runs/simulated --plots
    """
    # Options have the names of the plan's fields; the rest is about this process.
    chosen = dict(locals())
    from shoal.node.simulate_plan import Plan

    plan = Plan(**{name: chosen[name] for name in Plan.__dataclass_fields__ if name in chosen})
    plan.check()
    if plots:
        from shoal.node.simulate_plots import require_matplotlib

        if out is None:
            raise UserError("--plots needs a place: give --out DIRECTORY too")
        require_matplotlib()
    import torch

    torch.set_num_threads(threads)
    rows, summary = _play(plan, quiet=as_json)
    if out is not None:
        _write(out, rows, summary)
    if plots and out is not None:
        from shoal.node.simulate_plots import plot_run

        plot_run(rows, f"{strategy}, {peers} peers", out)
    if as_json:
        print(json.dumps({"summary": summary, "rounds": rows}))


def _play(plan: "Plan", *, quiet: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from shoal.node.simulate import World, summary_of

    world = World(plan)
    rows: list[dict[str, Any]] = []
    for measured in world.run():
        rows.append(asdict(measured))
        if not quiet and _worth_a_line(measured.round, plan.rounds):
            print(_line(rows[-1]), flush=True)
    return rows, summary_of(plan, measured, world)


def _worth_a_line(number: int, rounds: int) -> bool:
    return number in (1, rounds) or number % max(1, rounds // 10) == 0


def _line(row: dict[str, Any]) -> str:
    committed = row["loss_committed"]
    agreed = "" if committed is None else f"   of the agreed one {committed:.4f}"
    return (
        f"round {row['round']:5d}   time {row['time']:6.0f}   loss {row['loss_individual']:.4f}   "
        f"of the mean model {row['loss_mean']:.4f}{agreed}   "
        f"apart {row['consensus_relative']:.4f}   sent {row['bytes_per_peer'] / 1e6:9.3f} MB a peer"
    )


def _write(directory: Path, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "rounds.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    text = json.dumps(summary, indent=2) + "\n"
    (directory / "summary.json").write_text(text)


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(simulate)
