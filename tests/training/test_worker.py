"""The training process, spoken to as the node does."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from tests.training.worker_process import (
    EVALUATE_IN,
    WEIGHTS_IN,
    WorkerProcess,
    started_worker,
    tiny_settings,
    tiny_weights,
)

# A node without anything but its training process, which it puts to work for ever. It says the
# child's process id, and then waits to be killed.
NODE = """
import json, subprocess, sys, tempfile
commands, size = json.loads(sys.argv[1]), int(sys.argv[2])
memory = tempfile.TemporaryFile()
memory.truncate(size)
commands[0]["memory_fd"] = memory.fileno()
child = subprocess.Popen(
    [sys.executable, "-m", "shoal.training.worker"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[memory.fileno()],
)
for command in commands:
    child.stdin.write(json.dumps(command).encode() + b"\\n")
child.stdin.flush()
events = [json.loads(child.stdout.readline())["event"] for _ in range(3)]
assert events == ["text", "ready", "rebased"], events
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with started_worker() as process:
        yield process


@pytest.mark.xdist_group("training-worker")
class TestRunningWorker:
    """One process serves these in turn; each begins with a rebase to where it wants to be."""

    def test_two_ordered_rounds_leave_two_deltas_that_lead_downhill(
        self, worker: WorkerProcess
    ) -> None:
        start = tiny_weights()
        worker.rebase(start)
        worker.order(1, steps=4)
        worker.order(2, steps=4)
        reports = [worker.event(), worker.event()]

        assert [report["round"] for report in reports] == [1, 2]
        assert [report["steps"] for report in reports] == [4, 4]
        assert [report["tokens"] for report in reports] == [4 * 4 * 32] * 2
        assert 6 > reports[0]["loss"] > reports[1]["loss"] > 3
        assert all(report["seconds"] > 0 for report in reports)
        trained = start - worker.delta(1) - worker.delta(2)
        assert self.loss_of(worker, trained) < self.loss_of(worker, start) - 0.01

    def loss_of(self, worker: WorkerProcess, weights: np.ndarray) -> float:
        worker.slots[EVALUATE_IN] = weights
        worker.send("evaluate", tag="checkpoint 3")
        event = worker.event()
        assert (event["event"], event["tag"]) == ("evaluated", "checkpoint 3")
        return float(event["measured"]["loss"])

    def test_two_models_can_be_compared_batch_by_batch(self, worker: WorkerProcess) -> None:
        losses = []
        for weights in (tiny_weights(), tiny_weights() * np.float32(np.nan)):
            worker.slots[EVALUATE_IN] = weights
            worker.send("batch-losses", tag="before 3")
            event = worker.event()
            assert (event["event"], event["tag"]) == ("batch-losses", "before 3")
            losses.append(event["losses"])
        assert all(5 < loss < 6 for loss in losses[0])
        assert losses[1] == [None] * len(losses[0]), "no number, and the process lives"
        assert self.loss_of(worker, tiny_weights()) == pytest.approx(np.mean(losses[0]), abs=1e-4)

    def test_a_rebase_overtakes_the_end_of_a_round_and_is_no_part_of_its_delta(
        self, worker: WorkerProcess
    ) -> None:
        worker.rebase(tiny_weights())
        worker.order(1, steps=30)
        worker.slots[WEIGHTS_IN] = tiny_weights() + 0.5
        worker.send("rebase")

        assert [worker.event()["event"], worker.event()["event"]] == ["rebased", "round"]
        # Thirty steps at this learning rate cannot move a weight by a quarter.
        assert 0 < np.abs(worker.delta(1)).max() < 0.25

    def test_a_rebase_from_before_the_last_round_does_not_undo_that_round(
        self, worker: WorkerProcess
    ) -> None:
        start = tiny_weights()
        worker.rebase(start)
        untrained = self.loss_of_round_9(worker)
        worker.rebase(start)
        worker.order(11, steps=8)
        worker.event()
        # The node has not seen round 11 yet: what it sends contains round 10 at most.
        worker.rebase(start, round=10)
        assert self.loss_of_round_9(worker) < untrained - 0.01

        worker.rebase(start)
        assert self.loss_of_round_9(worker) == pytest.approx(untrained, abs=1e-3)

    def loss_of_round_9(self, worker: WorkerProcess) -> float:
        # The loss before the only step of a round tells where the training process stands: the
        # text of a round and step is always the same.
        worker.order(9, steps=1)
        return float(worker.event()["loss"])

    def test_a_round_under_another_schedule_learns_as_that_says(
        self, worker: WorkerProcess
    ) -> None:
        worker.rebase(tiny_weights())
        usual = {"learning_rate": 3e-3, "warmup_tokens": 0, "schedule_tokens": 10**6}
        moved = []
        for number, schedule in ((31, usual), (32, {**usual, "learning_rate": 0.0}), (33, usual)):
            worker.order(number, steps=1, schedule=schedule)
            assert worker.event()["event"] == "round"
            moved.append(float(np.abs(worker.delta(number)).max()))
        assert moved[1] == 0 < min(moved[0], moved[2])

    def test_it_ends_at_once_when_its_input_ends(self, worker: WorkerProcess) -> None:
        worker.order(99, steps=10**7)
        worker.send("rebase")
        assert worker.event() == {"event": "rebased"}
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        assert worker.process.wait(timeout=10) == 0


def test_equal_seeds_give_equal_deltas_bit_for_bit_and_nan_is_reported() -> None:
    with started_worker() as one, started_worker() as two:
        deltas = []
        for worker in (one, two):
            worker.rebase(tiny_weights())
            worker.order(1, steps=5)
            worker.event()
            deltas.append(worker.delta(1).tobytes())
        assert deltas[0] == deltas[1]

        # The same weights with another round number read other text.
        one.rebase(tiny_weights())
        one.order(2, steps=5)
        one.event()
        assert one.delta(2).tobytes() != deltas[0]

        two.rebase(np.full_like(tiny_weights(), np.nan))
        two.order(2)
        event = two.event()
        assert event["event"] == "error"
        assert "lower learning_rate (now 0.003)" in event["message"]
        assert two.process.wait(timeout=10) == 1


def test_what_takes_long_to_load_can_be_loaded_before_it_is_known_what_to_train() -> None:
    worker = WorkerProcess(tiny_weights().size)
    try:
        worker.send("prepare", threads=1)
        ready = worker.configure(tiny_settings())
        assert ready["event"] == "ready" and worker.shard_tokens > 0
    finally:
        worker.close()
    worker = WorkerProcess(8)
    try:
        worker.send("prepare", threads=0)
        assert "from 1 to 1024, not 0" in worker.event()["message"]
        assert worker.process.wait(timeout=10) == 1
    finally:
        worker.close()


def test_a_wrong_configuration_is_one_line_and_exit_code_1() -> None:
    worker = WorkerProcess(8)
    try:
        event = worker.configure(tiny_settings(threads=0))
        assert event == {
            "event": "error",
            "message": "threads must be a whole number from 1 to 1024, not 0",
        }
        assert worker.process.wait(timeout=10) == 1
    finally:
        worker.close()


def test_a_killed_node_leaves_no_orphan() -> None:
    commands = [
        {"cmd": "configure", **tiny_settings()},
        {"cmd": "rebase"},
        {"cmd": "round", "round": 1, "steps": 10**7, "tokens_done": 0, "tokens_per_step": 1},
    ]
    size = 4 * 4 * len(tiny_weights())
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, json.dumps(commands), str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert node.stdout is not None
    assert node.stdin is not None
    try:
        child = int(node.stdout.readline())
        # Readable as soon as the child is gone, though it is not our child: no polling, no sleep.
        handle = os.pidfd_open(child)
        assert not wait_until_readable(handle, seconds=0)
        node.send_signal(signal.SIGKILL)
        assert wait_until_readable(handle, seconds=10), "the training process outlived its node"
        os.close(handle)
    finally:
        node.kill()
        node.communicate()


def wait_until_readable(descriptor: int, *, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])
