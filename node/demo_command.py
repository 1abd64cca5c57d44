"""`shoal demo`: the command; what it does is in demo.py."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer


def demo(
    directory: Annotated[Path, typer.Option(help="where it may write")] = Path("runs/demo"),
    nodes: Annotated[int, typer.Option(min=4, max=16, help="processes to start")] = 4,
    rounds: Annotated[int | None, typer.Option(min=1, help="rounds of each node")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=10, help="give up when training takes longer")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the first weights and of batches")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="leave the mesh running")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="stop one that was left running")] = False,
) -> None:
    """Four nodes on this machine train one model.

    Ends with a report on screen and in DIRECTORY/report.json; exit code 0 when all of it holds.

    Example: shoal demo --keep, then shoal invite and shoal join as it prints.
    """
    from shoal.node.demo import ROUNDS, TRAIN_SECONDS, DemoPlan, run_demo, stop_demo

    if stop:
        stopped = stop_demo(directory)
        print(f"stopped {stopped} processes of the demo in {directory}")
        return
    plan = DemoPlan(
        directory=directory.resolve(),
        nodes=nodes,
        rounds=rounds or ROUNDS,
        train_seconds=seconds or TRAIN_SECONDS,
        seed=seed,
        keep=keep,
    )
    raise typer.Exit(asyncio.run(run_demo(plan)))
