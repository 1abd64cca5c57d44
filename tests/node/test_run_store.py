"""The run store keeps what was told: whoever is killed, however long it runs, however full the disk
is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.node import run_store
from shoal.node.run_rows import RoundDone, RunEnded, row_to_line
from shoal.node.run_store import RunStore, read_run, runs_of
from tests.node.example_runs import BEGAN_S, began, checkpoint_done, keep, round_done, whole_run

WRITES_FOR_EVER = """
import itertools, sys
from pathlib import Path
from shoal.node.run_store import RunStore
from tests.node.example_runs import began, round_done
store = RunStore(Path(sys.argv[1]), "000001", rows_max=10**9)
store.write(began())
for number in itertools.count(1):
    store.write(round_done(number))
"""


def test_who_is_killed_while_writing_loses_the_last_row_at_most(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITES_FOR_EVER, str(tmp_path)])
    try:
        while not (runs_of(tmp_path) and runs_of(tmp_path)[0].stat().st_size > 20_000):
            assert writer.poll() is None, "the writer ended"
            time.sleep(0.01)
        assert read_run(runs_of(tmp_path)[0]).running
    finally:
        writer.kill()
        writer.wait()
    (path,) = runs_of(tmp_path)
    run = read_run(path)
    assert run.how == "killed"
    assert [row.round for row in run.rounds] == list(range(1, len(run.rounds) + 1))
    assert len(run.rounds) >= path.read_bytes().count(b"\n") - 1


def test_half_a_row_at_the_end_is_passed_over(tmp_path: Path) -> None:
    path = keep(tmp_path, [began(), round_done(1)])
    with path.open("ab") as file:
        file.write(row_to_line(round_done(2))[:-20])
    assert [row.round for row in read_run(path).rounds] == [1]


def test_a_long_run_keeps_its_shape_and_its_newest_rounds_in_a_bounded_file(tmp_path: Path) -> None:
    store = RunStore(tmp_path, "000001", rows_max=40)
    store.write(began())
    sizes = []
    for number in range(1, 1001):
        store.write(round_done(number))
        if number % 4 == 0:
            store.write(checkpoint_done(number // 4))
        sizes.append(store.path.stat().st_size)
    assert max(sizes[500:]) <= 1.3 * max(sizes[:100]), "it does not grow with the run"
    run = read_run(store.path)
    assert run.running, "it is locked as before, though it is another file by now"
    numbers = [row.round for row in run.rounds]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 1 and numbers[-8:] == list(range(993, 1001))
    assert run.rounds[-1].tokens_total == 1_000_000, "totals miss nothing that was thinned out"
    heights = [row.height for row in run.checkpoints]
    assert heights[0] == 1 and heights[-1] == 250
    store.write(RunEnded(time_s=BEGAN_S, how="stopped"))
    assert read_run(store.path).how == "stopped"


def test_the_oldest_runs_go_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_store, "RUNS_MAX", 3)
    for number in range(1, 6):
        keep(tmp_path, whole_run(f"{number:06}"))
    assert [path.stem for path in runs_of(tmp_path)] == ["000003", "000004", "000005"]
    monkeypatch.setattr(run_store, "BYTES_MAX", 1)
    keep(tmp_path, whole_run("000006"))
    assert [path.stem for path in runs_of(tmp_path)] == ["000006"]


def test_a_full_disk_costs_the_rows_that_do_not_fit_and_never_half_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_write, free = os.write, [10_000]

    def write(file: int, data: bytes) -> int:
        room = min(len(data), free[0])
        free[0] -= room
        return really_write(file, data[:room])

    monkeypatch.setattr(os, "write", write)
    store = RunStore(tmp_path, "000001")
    free[0] = 100
    with pytest.raises(OSError, match="No space left"):
        store.write(began())
    with pytest.raises(OSError, match="No space left"):
        store.write(round_done(1))
    free[0] = 10_000
    store.write(round_done(2))
    free[0] = 100
    with pytest.raises(OSError, match="No space left"):
        store.write(round_done(3))
    free[0] = 10_000
    store.write(round_done(4))
    run = read_run(store.path)
    assert run.began == began(), "the beginning is made good when there is room"
    assert [row.round for row in run.rounds] == [2, 4]
    assert store.path.read_bytes().endswith(b"\n")


def test_a_loss_that_is_no_number_is_none_and_not_a_lie(tmp_path: Path) -> None:
    path = keep(tmp_path, [began(), round_done(1)])
    with path.open("ab") as file:
        file.write(row_to_line(round_done(2, loss=float("nan"))))
    last = read_run(path).rounds[-1]
    assert isinstance(last, RoundDone) and last.loss is None
    assert b"NaN" not in path.read_bytes()
