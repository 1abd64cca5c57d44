"""Time to a loss when every worker hangs on a line of 10, 50, 200 or 1,000 Mbit/s with delay.

    python -m benchmarks.shaped_link --systems ddp fedavg-50 shoal --rates 10 50 --delay-ms 20

The same systems and work as loss_per_byte.py, each worker behind its own shaped line (network.py:
tbf towards the switch; delay and the other direction by a switch of our own, for want of netem). A
system that takes hours on a slow line is given few steps: how many steps it needs for the loss does
not depend on the line where everybody waits for everybody, so they come from runs without one
(those of loss_per_byte.jsonl, and those made here with `--rates 0`), the seconds of a step from the
run on the line, and the result says "extrapolated". Shoal and hivemind wait for nobody, so their
own curves count, as far as they were run. `--batch` changes how much a step computes, and the bytes
stay: what a quicker processor would see of the line. The share of time spent computing is the time
of a step of four workers that never talk ("alone", with the same optimiser, measured first, on the
same processors) over that of a step.

JSON lines go to benchmarks/data/shaped_link.jsonl.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common_work import BATCH, MODELS
from benchmarks.loss_per_byte import DATA as CURVES
from benchmarks.loss_per_byte import read_lines, run
from benchmarks.network import Shape, enter
from shoal.node.parameters import MeshParameters

DATA = CURVES.with_name("shaped_link.jsonl")
RATES_MBIT = (10.0, 50.0, 200.0, 1000.0)
# How far these get in a step depends on the line.
WAIT_FOR_NOBODY = ("shoal", "hivemind")
Curve = Sequence[tuple[float, float]]


def reaches(curve: Curve, loss: float) -> float | None:
    """How far along (x, loss) points a loss is reached, linear in log x; None for not at all.

    Where the first point is below it already, that one's x.
    """
    if curve and curve[0][1] <= loss:
        return curve[0][0]
    for (x, before), (next_x, after) in pairwise(curve):
        if after <= loss < before:
            share = (before - loss) / (before - after)
            return math.exp(math.log(x) + share * (math.log(next_x) - math.log(x)))
    return None


def time_to_loss(
    line: Mapping[str, Any], curves: Sequence[Mapping[str, Any]], loss: float
) -> tuple[float | None, bool]:
    """Seconds until the mean worker's loss, and whether they are extrapolated; None for unknown."""
    own = [(point["seconds"], point["loss"]) for point in line["points"]]
    if (seconds := reaches(own, loss)) is not None:
        return seconds, False
    same = [other["points"] for other in curves if other["system"] == line["system"]]
    if not same or line["system"].startswith(WAIT_FOR_NOBODY):
        return None, False
    curve = [
        (points[0]["steps"], statistics.fmean(point["loss"] for point in points))
        for points in zip(*same, strict=True)
    ]
    steps = reaches(curve, loss)
    return (None if steps is None else steps * line["seconds_per_step"]), True


def without_line(
    lines: Sequence[dict[str, Any]], model: str, batch: int
) -> list[Mapping[str, Any]]:
    """The runs of the same work on no line at all."""
    work = (model, batch)
    same = [each for each in lines if (each.get("model", "2M"), each.get("batch", BATCH)) == work]
    return [each for each in same if "rate_mbit" not in each]


def measure(
    system: str, shape: Shape | None, marks: Sequence[int], seed: int, model: str, batch: int
) -> dict[str, Any]:
    """One run; its line with the time of a step."""
    line = run(system, seed=seed, marks=marks, shape=shape, model=model, batch=batch)
    last = line["points"][-1]
    per_step = round(last["seconds"] / last["steps"], 4)
    shaped = {"rate_mbit": shape.rate_mbit, "delay_ms": shape.delay_ms} if shape else {}
    work = {"model": model, "batch": batch}
    return {**line, "benchmark": "shaped_link", **work, "seconds_per_step": per_step, **shaped}


def recipe_of(system: str) -> str:
    """What four workers that never talk must be told to make the same steps as `system`."""
    name, _, variant = system.partition(":")
    given = dict(item.split("=", 1) for item in variant.split(",") if item)
    default = MeshParameters().muon_scale if name == "shoal" else 0.0
    scale = float(given.get("muon_scale", default))
    return f":muon_scale={scale:g}" if scale else ""


def main() -> None:
    """Measure what was asked for; print a line each and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--systems", nargs="+", required=True)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES_MBIT, help="0: none")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="one way")
    parser.add_argument("--batch", type=int, default=BATCH, help="sequences a step")
    parser.add_argument("--marks", nargs="+", type=int, default=[100, 200])
    parser.add_argument("--loss", type=float, default=2.2, help="nats per byte")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=list(MODELS), default="2M")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    enter("benchmarks.shaped_link")
    work = options.seed, options.model, options.batch
    alone = {
        recipe: measure(f"alone{recipe}", None, [min(options.marks)], *work)
        for recipe in {recipe_of(system) for system in options.systems}
    }
    known = read_lines(CURVES) + read_lines(options.data)
    curves = without_line(known, options.model, options.batch)
    for rate in options.rates:
        shape = Shape(rate, options.delay_ms) if rate else None
        for system in options.systems:
            line = measure(system, shape, options.marks, *work)
            quiet = alone[recipe_of(system)]["seconds_per_step"]
            seconds, extrapolated = time_to_loss(line, curves, options.loss)
            line |= {
                "computing_share_of_time": round(min(1.0, quiet / line["seconds_per_step"]), 4),
                "loss_wanted": options.loss,
                "seconds_to_loss": None if seconds is None else round(seconds, 1),
                "extrapolated": extrapolated,
            }
            options.data.parent.mkdir(parents=True, exist_ok=True)
            with options.data.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
