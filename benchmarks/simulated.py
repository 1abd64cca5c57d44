"""What benchmarks/scale.py and robustness.py share: runs of `shoal simulate`, cached as JSON lines.

Each line of the output file stands for a finished run and is not run again: a long series that was
interrupted goes on where it was.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from shoal.node.simulate import World, summary_of
from shoal.node.simulate_plan import Plan

PLOTS = Path(__file__).parent / "plots"


def run(plan: Plan) -> dict[str, Any]:
    """One simulated run on one thread, as one flat object."""
    torch.set_num_threads(1)
    began = time.process_time()
    world = World(plan)
    for measured in world.run():
        last = measured
    return {**summary_of(plan, last, world), "cpu_s": round(time.process_time() - began, 1)}


def run_all(plans: Sequence[Plan], out: Path | None) -> Iterator[dict[str, Any]]:
    """Every plan's result, printed as a JSON line; those in `out` are taken from there."""
    done = _finished(out)
    for plan in plans:
        key = _key(asdict(plan))
        if key not in done:
            result = run(plan)
            print(json.dumps(result), flush=True)
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
                with out.open("a") as file:
                    file.write(json.dumps(result) + "\n")
            done[key] = result
        else:
            print("known already: " + key, file=sys.stderr)
        yield done[key]


def mean_over_seeds(
    results: Sequence[Mapping[str, Any]], line: str, x: str, y: str
) -> dict[str, tuple[list[float], list[float]]]:
    """For each value of column `line`: x ascending, and the mean of y over seeds."""
    points: dict[str, dict[float, list[float]]] = {}
    for result in results:
        points.setdefault(str(result[line]), {}).setdefault(result[x], []).append(result[y])
    return {
        name: (sorted(each), [sum(each[at]) / len(each[at]) for at in sorted(each)])
        for name, each in points.items()
    }


def _finished(out: Path | None) -> dict[str, dict[str, Any]]:
    if out is None or not out.exists():
        return {}
    fields = Plan.__dataclass_fields__
    results = [json.loads(line) for line in out.read_text().splitlines()]
    return {_key({name: each[name] for name in fields}): each for each in results}


def _key(plan: Mapping[str, Any]) -> str:
    return json.dumps(dict(sorted(plan.items())))
