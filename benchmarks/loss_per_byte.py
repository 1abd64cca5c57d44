"""Loss at equal tokens against bytes on the wire, for Shoal and for what one would pick instead.

    python -m benchmarks.loss_per_byte --systems ddp fedavg-50 shoal --seeds 0 1 2 --steps 400
    python -m benchmarks.loss_per_byte --plot

Four workers, each in a network namespace of its own (network.py), do the common work
(common_work.py). A worker's sent bytes are its interface's counter when its weights of that mark
are on the disk. Losses are those of each worker's own model, measured after the run, when nothing
else computes; of Shoal each node's live anchor is measured besides, the mean of its own weights
that `shoal own` gives, and at the end the mean of the last checkpoints that `shoal average` makes.
A run that is in the data file already is not made again. One JSON line a run goes to
benchmarks/data/loss_per_byte.jsonl.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common_work import BATCH, SEQUENCE, evaluate, first_model, prepare, read_batch
from benchmarks.network import Shape, Star, enter

HERE = Path(__file__).resolve().parent
DATA = HERE / "data" / "loss_per_byte.jsonl"
MARKS = (100, 200, 400)
PLOT = HERE / "plots" / "loss_per_byte.png"
POLL_SECONDS = 0.1
LOSS_DRAWN_MAX = 2.6
_SHAPE: dict[str, Any] = {"markersize": 9, "linestyle": "none"}
# Whoever sends less than this sends nothing but what its kernel says.
SILENT_MB = 0.1
RUN_SECONDS_MAX = 3600.0
SERVER = 4
MEMBERS = 5


def run(
    system: str,
    *,
    seed: int,
    marks: Sequence[int],
    shape: Shape | None = None,
    model: str = "2M",
    batch: int = BATCH,
) -> dict[str, Any]:
    """Carry out one run of one system; returns its line. Raises SystemFailed.

    marks: steps of each worker after which its weights are measured; the last is the end. model,
    batch: as in common_work.prepare.
    """
    from benchmarks.systems import Job, start

    with tempfile.TemporaryDirectory(
        prefix="shoal-benchmark-", ignore_cleanup_errors=True
    ) as scratch:
        work = Path(scratch) / "work"
        prepare(work, marks, model, batch=batch)
        job = Job(system, seed, marks, work, Path(scratch) / "run")
        began = time.monotonic()
        with Star(MEMBERS, shape) as star:
            running = start(job, star)
            sent = _watch(running, star, began)
            total = [star.sent_bytes(index) for index in range(MEMBERS)]
            frames = [star.sent_frames(index) for index in range(SERVER)]
            facts = running.finish()
        averages = running.averages()
        if averages:
            facts["average_losses"] = _measured(work, averages)
        return {
            "benchmark": "loss_per_byte",
            "system": system,
            "seed": seed,
            "steps": job.steps,
            "when": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": _machine(),
            "points": [_point(job.work, running, mark, sent[mark]) for mark in running.weights],
            "sent_bytes": total[:SERVER],
            "sent_frames": frames,
            "server_sent_bytes": total[SERVER],
            **facts,
        }


def _watch(running: Any, star: Star, began: float) -> dict[int, list[int]]:
    """Wait for the end; returns what each worker had sent when it reached each mark."""
    from benchmarks.systems import SystemFailed

    sent = {mark: [0] * len(files) for mark, files in running.weights.items()}
    while not (done := running.done()) or any(0 in counts for counts in sent.values()):
        for mark, files in running.weights.items():
            for index, path in enumerate(files):
                if not sent[mark][index] and path.exists():
                    sent[mark][index] = star.sent_bytes(index)
        failed = [process.args for process in running.processes if process.poll() not in (None, 0)]
        if failed or (done and not all(f.exists() for fs in running.weights.values() for f in fs)):
            raise SystemFailed(f"a process failed or left no weights: {failed}")
        if time.monotonic() - began > RUN_SECONDS_MAX:
            raise SystemFailed(f"not done after {RUN_SECONDS_MAX:.0f} s")
        time.sleep(POLL_SECONDS)
    return sent


def _point(work: Path, running: Any, mark: int, sent: list[int]) -> dict[str, Any]:
    losses = _measured(work, running.weights[mark])
    reached = max(path.stat().st_mtime for path in running.weights[mark])
    point = {
        "mark": mark,
        "seconds": round(reached - running.began(), 1),
        "steps": running.steps_at[mark],
        "tokens_per_worker": running.steps_at[mark] * read_batch(work) * SEQUENCE,
        "loss": round(statistics.fmean(losses), 4),
        "losses": [round(loss, 4) for loss in losses],
        "sent_bytes": sent,
        "sent_mb": round(statistics.fmean(sent) / 1e6, 3),
    }
    for name, files in running.more.items():
        point[f"{name}_losses"] = [round(loss, 4) for loss in _measured(work, files[mark])]
        point[f"{name}_loss"] = round(statistics.fmean(point[f"{name}_losses"]), 4)
    return point


def _measured(work: Path, files: Sequence[Path]) -> list[float]:
    """Measure each different file once: many systems leave everybody with the same weights."""
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in files]
    different = dict(zip(digests, files, strict=True))
    # transformers loads its parts when first asked, and two threads must not ask at once.
    first_model(work, 0)
    # One thread for the arithmetic of each (evaluate), so as many at once as there are processors.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        losses = threads.map(lambda path: evaluate(work, [path])[0], different.values())
        known = dict(zip(different, losses, strict=True))
    return [known[digest] for digest in digests]


def _machine() -> str:
    import torch

    return (
        f"{os.cpu_count()} CPUs {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What was measured before."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _key(line: Mapping[str, Any]) -> tuple[str, int, int]:
    return line["system"], line["seed"], line["steps"]


def plot(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss over bytes sent per worker, a line through the marks of each system.

    The loss is that of what a worker holds for the common model: after an average that is its own
    model, and in Shoal its live anchor; a star is the mean of the last checkpoints, a diamond that
    of a node's own weights. Who sends nothing is a level line.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5.5), layout="constrained")
    axes.set_prop_cycle(color=(*pyplot.get_cmap("tab20").colors[::2], (0.0, 0.0, 0.0)))
    for system in dict.fromkeys(line["system"] for line in lines):
        same = [line for line in lines if line["system"] == system]
        name = f"{system} ({len(same)})".replace(":", ":\n  ").replace(",", ",\n  ")
        points = list(zip(*(line["points"] for line in same), strict=False))
        x = [statistics.fmean(p["sent_mb"] for p in at_mark) for at_mark in points]
        losses = [[p.get("common_loss", p["loss"]) for p in at_mark] for at_mark in points]
        y = [statistics.fmean(each) for each in losses]
        if x[-1] < SILENT_MB:
            axes.axhline(y[-1], color="grey", linestyle=":", label=f"{name}, at the end")
            continue
        spread = [
            [mean - min(each) for mean, each in zip(y, losses, strict=True)],
            [max(each) - mean for mean, each in zip(y, losses, strict=True)],
        ]
        ours = system.startswith("shoal")
        drawn = axes.errorbar(
            x, y, yerr=spread, marker="o" if ours else "s", capsize=2,
            linestyle="-" if ours else "--", label=name,
        )  # fmt: skip
        for marker, of_nodes in _means(same).items():
            if of_nodes:
                mean = statistics.fmean(map(statistics.fmean, of_nodes))
                axes.plot(x[-1], mean, marker, color=drawn.lines[0].get_color(), **_SHAPE)
    axes.plot([], [], "*", label="mean of checkpoints", color="black", **_SHAPE)
    axes.plot([], [], "d", label="mean of a node's own weights", color="black", **_SHAPE)
    axes.set_xscale("log")
    axes.set_ylim(top=LOSS_DRAWN_MAX)
    axes.set_xlabel("sent by each worker, MB on the wire, all overhead included")
    axes.set_ylabel("held-out loss, nats per byte")
    axes.set_title("Four workers after 100, 200 and 400 steps each (seeds)")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _means(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """By marker, each run's losses of what its nodes make of several models at the end."""
    own = [line["points"][-1].get("own_mean_losses") for line in lines]
    certified = [line.get("average_losses") for line in lines]
    return {"*": list(filter(None, certified)), "d": list(filter(None, own))}


def main() -> None:
    """Run what is missing, print every line that was asked for, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--systems", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--plot", action="store_true", help="draw what has been measured")
    options = parser.parse_args()
    if options.systems:
        if not shutil.which("unshare"):
            parser.error("network namespaces are needed: Linux with util-linux and iproute2")
        enter("benchmarks.loss_per_byte")
    done = {_key(line): line for line in read_lines(options.data)}
    for seed in options.seeds:
        for system in options.systems:
            key = (system, seed, options.steps)
            if key not in done:
                marks = [mark for mark in MARKS if mark <= options.steps]
                done[key] = run(system, seed=seed, marks=marks)
                options.data.parent.mkdir(parents=True, exist_ok=True)
                with options.data.open("a") as file:
                    file.write(json.dumps(done[key]) + "\n")
            print(json.dumps(done[key]), flush=True)
    if options.plot:
        plot(read_lines(options.data), PLOT)


if __name__ == "__main__":
    main()
