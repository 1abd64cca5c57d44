"""What a real node tells of its run, and who listens to it."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from shoal.node import recorder
from shoal.node.identity import Identity
from shoal.node.recorder import Recorder, recording
from shoal.node.run_rows import Row
from shoal.node.run_store import Run, read_run, runs_of
from tests.node.example_runs import began, round_done
from tests.node.mesh import found_mesh, running, until


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def write(self, row: Row) -> None:
        self.rows.append(row)


class Hanging(Kept):
    """A tracker that takes the first row and never comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def write(self, row: Row) -> None:
        super().write(row)
        self.let_go.wait()


class Raising(Kept):
    """A tracker that cannot take anything."""

    def write(self, row: Row) -> None:
        super().write(row)
        raise ConnectionError("the collector\nis away")


async def run_of_two(directories: list[Path], run: int, trackers: dict[str, Any]) -> Run:
    """Two nodes make four rounds and a checkpoint; returns what the first one kept of it."""
    async with running(directories, rounds=4 * run) as nodes:
        state = nodes[0].node.state
        async with recording(state, run, trackers) as recorder:
            nodes[0].node.on_row = recorder.tell
            await until(lambda: len(state.facts.evaluations) > 0, nodes)
            await until(lambda: state.facts.state == "finished", nodes)
    return read_run(runs_of(directories[0])[-1])


def test_a_run_is_kept_from_its_settings_to_its_end_whatever_becomes_of_the_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "CLOSE_S", 2.0)
    monkeypatch.setattr(recorder, "ROWS_WAITING_MAX", 4)
    directories = found_mesh(tmp_path, nodes=2)
    hanging, raising = Hanging(), Raising()
    with capture_logs() as lines:
        story = run_of_two(directories, 1, {"hanging": hanging, "raising": raising})
        run = asyncio.run(story)
    began, rounds = run.began, run.rounds
    assert run.how == "stopped"
    assert (began.run, began.previous) == ("000001", "")
    assert began.settings["train.max_rounds"] == 4
    assert began.mesh["local_steps"] == 2 and began.versions["torch"]
    key = Identity.load(directories[0] / "identity.key")
    assert began.node_id == key.node_id.hex()
    assert (directories[0] / "identity.key").read_text()[30:60] not in run.path.read_text()

    assert [row.round for row in rounds] == [1, 2, 3, 4], "nobody waited for who hangs"
    assert [row.deltas_made for row in rounds] == [1, 2, 3, 4]
    assert [row.tokens_total for row in rounds] == [100, 200, 300, 400]
    assert rounds[-1].device == "none" and rounds[-1].loss == 1.0
    sent = [row.sent_bytes.get("consensus", 0) for row in rounds]
    assert sent == sorted(sent) and sent[-1] > 0
    for row in rounds:
        names = [stage.name for stage in row.stages]
        assert names == ["train", "residual", "compress", "sign", "publish", "rebase"]
        assert row.stages[0].seconds == row.seconds

    checkpoint = run.checkpoints[0]
    assert checkpoint.height == 1 and len(checkpoint.signers) == 2
    assert began.node_id[:16] in checkpoint.signers
    names = [stage.name for stage in checkpoint.stages]
    assert names[-2:] == ["order", "commit"] and {"propose", "check"} & set(names)
    (height, *_), (loss, *_) = run.held_out, run.held_out.values()
    assert height >= 1 and loss is not None and loss > 0

    assert len(hanging.rows) == 1, "it has the first row, and still looks at it"
    hanging.let_go.set()
    assert len(raising.rows) > 6, "who raises is asked again"
    told = [(line["event"], line["tracker"]) for line in lines if "tracker" in line]
    assert sorted(told) == [
        ("tracking.behind", "hanging"),
        ("tracking.failed", "raising"),
        ("tracking.given-up", "hanging"),
    ]

    again = asyncio.run(run_of_two(directories, 2, {}))
    assert (again.began.run, again.began.previous) == ("000002", "000001")
    assert [row.round for row in again.rounds] == [5, 6, 7, 8]


def test_who_fails_for_a_while_is_said_to_fail_once_and_to_work_again(tmp_path: Path) -> None:
    class Full(Kept):
        def write(self, row: Row) -> None:
            super().write(row)
            if 2 <= len(self.rows) <= 4:
                raise OSError(28, "No space left on device")

    tracker = Full()
    told = Recorder(None, {"run store": tracker})  # type: ignore[arg-type]
    with capture_logs() as lines:
        told.tell(began())
        for number in range(1, 6):
            told._lanes[0].put(round_done(number))
        told.end("stopped")
    assert len(tracker.rows) == 7
    assert [line["event"] for line in lines] == ["tracking.failed", "tracking.works-again"]
    assert "No space left" in lines[0]["why"]
