"""What there is to say of runs: which one is meant, what came of it, how several differ. Pure, but
for reading the files."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from shoal.node.errors import UserError
from shoal.node.run_store import FOLDER, Run, read_run, runs_of

BLOCKS = " ▁▂▃▄▅▆▇█"
# A loss of one round is noise; the last few are what a person means by "the loss now".
LAST_ROUNDS = 5
# Where a run lies is never the same twice and says nothing about it.
PLACES = ("node.", "log.", "tracking.")


def runs_under(directories: Sequence[Path]) -> list[Run]:
    """The runs of nodes' directories, or of all nodes in one that holds such; raises UserError."""
    found: list[Run] = []
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"{directory} is no directory; name a node's, like runs/mesh/node0")
        inside = sorted(each.parent for each in directory.glob(f"*/{FOLDER}"))
        paths = runs_of(directory) or [path for node in inside for path in runs_of(node)]
        if not paths:
            raise UserError(f"{directory} has no runs yet; `shoal run {directory}` makes one")
        for path in paths:
            # One that was killed before its first row has nothing to say.
            with suppress(UserError):
                found.append(read_run(path))
    return found


def find_run(reference: str) -> Run:
    """The run of a file, of DIR:NUMBER, or the newest of DIR; raises UserError."""
    path = Path(reference)
    if path.is_file():
        return read_run(path)
    directory, number = (path, "") if path.is_dir() else _split(reference)
    runs = runs_of(directory)
    if number:
        runs = [each for each in runs if each.stem.lstrip("0") == number.lstrip("0")]
    if not runs:
        raise UserError(
            f"there is no run {reference}; name a node's directory (its newest run), DIR:NUMBER, "
            f"or a file in DIR/{FOLDER}: `shoal runs list DIR` shows them"
        )
    return read_run(runs[-1])


def _split(reference: str) -> tuple[Path, str]:
    directory, _, number = reference.rpartition(":")
    plain = number.isascii() and number.isdigit() and len(number) < 16
    return (Path(directory), number) if directory and plain else (Path(reference), "")


def reference_of(run: Run) -> str:
    """How a person names this run."""
    return (
        f"{run.path.parent.parent}:{int(run.path.stem)}"
        if run.path.stem.isdigit()
        else str(run.path)
    )


def losses(run: Run) -> list[float]:
    """The training loss of each round that has one."""
    return [row.loss for row in run.rounds if row.loss is not None]


def loss_at(run: Run, tokens: int) -> float | None:
    """The mean loss of the last rounds up to so many tokens."""
    known = [row.loss for row in run.rounds if row.tokens_total <= tokens and row.loss is not None]
    return fmean(known[-LAST_ROUNDS:]) if known else None


def summary(run: Run) -> dict[str, Any]:
    """One run in a flat record: of JSON, of a CSV line, of a column in a table."""
    began, last = run.began, run.rounds[-1] if run.rounds else None
    sent = sum(last.sent_bytes.values()) if last else 0
    tokens = last.tokens_total if last else 0
    held_out = {height: loss for height, loss in run.held_out.items() if loss is not None}
    end_s = time.time() if run.running else run.last_s
    return {
        "run": reference_of(run),
        "node": began.node,
        "previous": began.previous,
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(began.time_s)),
        "seconds": round(max(0.0, end_s - began.time_s), 1),
        "ended": run.how or "running",
        "shoal": began.versions.get("shoal", ""),
        "device": last.device if last else "",
        "parameters": began.parameters,
        "round": last.round if last else 0,
        "deltas_made": last.deltas_made if last else 0,
        "tokens": tokens,
        "loss_first": losses(run)[0] if losses(run) else None,
        "loss": loss_at(run, tokens),
        "height": run.checkpoints[-1].height if run.checkpoints else began.height,
        "held_out_loss": held_out[max(held_out)] if held_out else None,
        "step_seconds": round(median(r.seconds / max(1, r.steps) for r in run.rounds), 4)
        if run.rounds
        else None,
        "sent_bytes": sent,
        "sent_bytes_per_token": round(sent / tokens, 2) if tokens else None,
    }


def configuration(run: Run) -> dict[str, Any]:
    """Everything a run was given, by dotted name."""
    began = run.began
    return {
        **began.settings,
        **{f"mesh.{name}": value for name, value in began.mesh.items()},
        **{f"versions.{name}": value for name, value in began.versions.items()},
        **{f"machine.{name}": value for name, value in began.machine.items()},
    }


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """What the runs were given differently: by name, a value for each run."""
    given = [configuration(run) for run in runs]
    names = sorted({name for each in given for name in each if not name.startswith(PLACES)})
    columns = {name: [each.get(name) for each in given] for name in names}
    return {name: values for name, values in columns.items() if any(v != values[0] for v in values)}


def comparison(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The summaries, and each run's losses where all of them have been."""
    tokens = min((run.rounds[-1].tokens_total if run.rounds else 0) for run in runs)
    common = set[int].intersection(*(set(run.held_out) for run in runs))
    height = max(common, default=0)
    return [
        {
            **summary(run),
            "common_tokens": tokens,
            "loss_at_common_tokens": loss_at(run, tokens),
            "common_height": height,
            "held_out_at_common_height": run.held_out.get(height),
        }
        for run in runs
    ]


def chart(
    values: Sequence[float], *, width: int, height: int, span: tuple[float, float] | None = None
) -> list[str]:
    """A line of numbers as rows of block characters, the highest first; each column is a mean.

    span: what the lowest and the highest row stand for; the values' own unless given.
    """
    if not values:
        return []
    columns = min(width, len(values))
    edges = [round(index * len(values) / columns) for index in range(columns + 1)]
    means = [fmean(values[left:right]) for left, right in pairwise(edges)]
    low, high = span or (min(means), max(means))
    # The lowest value is one eighth high, so that it can be seen.
    steps = 8 * height - 1
    scaled = [1 + round(steps * (mean - low) / ((high - low) or 1.0)) for mean in means]
    return [
        "".join(BLOCKS[min(8, max(0, level - 8 * row))] for level in scaled)
        for row in reversed(range(height))
    ]


def round_records(run: Run) -> list[Mapping[str, Any]]:
    """Each round as a flat record, for CSV."""
    kinds = sorted({kind for row in run.rounds for kind in row.sent_bytes})
    stages = list(dict.fromkeys(stage.name for row in run.rounds for stage in row.stages))
    plain = ("time_s", "round", "height", "loss", "steps", "tokens", "tokens_total", "seconds")
    return [
        {
            **{name: getattr(row, name) for name in (*plain, "delta_bytes", "deltas_made")},
            **{f"sent_{kind}_bytes": row.sent_bytes.get(kind, 0) for kind in kinds},
            **{
                f"{name}_seconds": round(sum(s.seconds for s in row.stages if s.name == name), 4)
                for name in stages
            },
        }
        for row in run.rounds
    ]
