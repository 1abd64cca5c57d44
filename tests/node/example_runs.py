"""Rows as a node would tell them, for tests of who keeps and shows them."""

from pathlib import Path
from typing import Any

from shoal.node.run_rows import (
    CheckpointDone,
    Evaluated,
    RoundDone,
    Row,
    RunBegan,
    RunEnded,
    Stage,
)
from shoal.node.run_store import RunStore

BEGAN_S = 1_796_000_000.0


def began(run: str = "000001", **changes: Any) -> RunBegan:
    """The beginning of a run of node0."""
    row: dict[str, Any] = {
        "run": run,
        "previous": "",
        "time_s": BEGAN_S,
        "node": "node0",
        "node_id": "ab" * 32,
        "mesh_id": "cd" * 32,
        "height": 0,
        "parameters": 824_448,
        "versions": {"shoal": "0.1.0", "torch": "2.13.0"},
        "machine": {"cores": "2"},
        "settings": {"node.name": "node0", "train.batch": 8},
        "mesh": {"learning_rate": 1e-3},
    }
    return RunBegan(**{**row, **changes})


def round_done(number: int, *, loss: float | None = None) -> RoundDone:
    """A round of two seconds; the loss falls from round to round."""
    at_s = BEGAN_S + 2 * number
    return RoundDone(
        time_s=at_s,
        round=number,
        height=number // 4,
        loss=5.0 / number if loss is None else loss,
        steps=4,
        tokens=1000,
        tokens_total=1000 * number,
        seconds=2.0,
        delta_bytes=500,
        stages=[Stage("train", at_s - 2.1, 2.0), Stage("compress", at_s - 0.1, 0.1)],
        sent_bytes={"delta": 1500 * number},
        deltas_made=number,
        device="cpu",
    )


def checkpoint_done(height: int) -> CheckpointDone:
    """Four rounds of four members, which took three parts."""
    at_s = BEGAN_S + 8 * height + 1
    return CheckpointDone(
        time_s=at_s,
        height=height,
        round=4 * height,
        root="ef" * 32,
        signers=["ab" * 8, "cd" * 8, "ef" * 8],
        view=0,
        deltas=16,
        delta_bytes=8000,
        tokens=16_000 * height,
        stages=[
            Stage("check", at_s - 0.5, 0.2),
            Stage("order", at_s - 0.3, 0.1),
            Stage("commit", at_s - 0.2, 0.2),
        ],
    )


def whole_run(run: str = "000001", *, rounds: int = 8, **changes: Any) -> list[Row]:
    """A run that was stopped: its rounds, a checkpoint after every fourth, their evaluations."""
    rows: list[Row] = [began(run, **changes)]
    for number in range(1, rounds + 1):
        rows.append(round_done(number))
        if number % 4 == 0:
            height = number // 4
            rows.append(checkpoint_done(height))
            held_out = 4.0 / height
            rows.append(Evaluated(time_s=BEGAN_S, height=height, held_out_loss=held_out))
    return [*rows, RunEnded(time_s=BEGAN_S + 2 * rounds, how="stopped")]


def keep(directory: Path, rows: list[Row]) -> Path:
    """Write rows as the node of `directory` does, until it is killed; returns the file."""
    directory.mkdir(exist_ok=True)
    assert isinstance(rows[0], RunBegan)
    store = RunStore(directory, rows[0].run)
    for row in rows:
        store.write(row)
    if not isinstance(rows[-1], RunEnded):
        store.close()
    return store.path
