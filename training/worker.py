"""The training process: `python -m shoal.training.worker`, started and commanded by the node.

Commands come as JSON lines on stdin and events leave as JSON lines on stdout (README.md has them
all); tensors lie in a file without a name that both processes map. Training never waits for the
parent: commands queue up, so the next round is there when one ends, and a new starting point is
taken in between two steps, also in the middle of a round.

A second thread reads stdin, so that "stop" and the end of the input end this process at any time,
in the middle of a matrix product too: a parent that is killed leaves no orphan behind. That thread
runs before torch is loaded, which takes seconds.
"""

import json
import math
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NoReturn

from shoal.training.errors import TrainingError
from shoal.training.process import limit_threads, loading

if TYPE_CHECKING:
    import torch

    from shoal.training.session import TrainingSession

COMMAND_BYTES_MAX = 1 << 20
# The shared memory: four vectors of P float32 values.
SLOTS = 4
WEIGHTS_IN = 0
DELTA_OUT = (1, 2)
EVALUATE_IN = 3


class Inbox:
    """Commands in their order, except that rebases overtake rounds and evaluations."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._commands: deque[dict[str, Any]] = deque()
        self._rebases: deque[dict[str, Any]] = deque()

    def put(self, command: dict[str, Any]) -> None:
        """Add a command (from the reader's thread)."""
        with self._changed:
            is_rebase = command.get("cmd") == "rebase"
            (self._rebases if is_rebase else self._commands).append(command)
            self._changed.notify()

    def first(self) -> dict[str, Any]:
        """Wait for the configuration; a rebase that is there already does not overtake it."""
        with self._changed:
            self._changed.wait_for(lambda: self._commands)
            return self._commands.popleft()

    def next(self) -> dict[str, Any]:
        """Wait for the next command; rebases come first."""
        with self._changed:
            self._changed.wait_for(lambda: self._rebases or self._commands)
            return (self._rebases or self._commands).popleft()

    def next_rebase(self) -> dict[str, Any] | None:
        """Return a rebase that is waiting, if there is one."""
        with self._changed:
            return self._rebases.popleft() if self._rebases else None


class Outbox:
    """Events to the parent, on what was stdout; anything that prints goes to stderr."""

    def __init__(self) -> None:
        self._descriptor = os.dup(1)
        os.dup2(2, 1)

    def send(self, event: str, **values: Any) -> None:
        """Write one event; a parent that is gone ends this process."""
        line = json.dumps({"event": event, **values}, allow_nan=False).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            os._exit(0)


class Worker:
    """The loop: one command after the other, rebases between any two steps."""

    def __init__(
        self, session: "TrainingSession", slots: "list[torch.Tensor]", inbox: Inbox, outbox: Outbox
    ) -> None:
        self._session = session
        self._slots = slots
        self._inbox = inbox
        self._outbox = outbox
        # The rounds whose deltas still lie in their slots, oldest first.
        self._rounds: deque[int] = deque(maxlen=len(DELTA_OUT))

    def run(self) -> NoReturn:
        """Carry out commands until the reader's thread ends the process; raises on failure."""
        while True:
            command = self._inbox.next()
            kind = command.pop("cmd", None)
            if kind == "rebase":
                self._rebase(**command)
            elif kind == "round":
                self._round(**command)
            elif kind == "evaluate":
                self._evaluate(**command)
            elif kind == "batch-losses":
                self._batch_losses(**command)
            else:
                raise AssertionError(f"the node sent the command {kind!r}")

    def _rebase(self, round: int | None = None) -> None:
        newer = [number for number in self._rounds if round is not None and number > round]
        self._session.rebase(
            self._slots[WEIGHTS_IN], [self._slots[DELTA_OUT[number % 2]] for number in newer]
        )
        self._outbox.send("rebased")

    def _take_rebases(self) -> None:
        while (command := self._inbox.next_rebase()) is not None:
            del command["cmd"]
            self._rebase(**command)

    def _round(self, *, schedule: dict[str, Any] | None = None, **values: int) -> None:
        from shoal.training.local_steps import Schedule
        from shoal.training.session import RoundOrder

        # The moments of the optimiser stay: another schedule is no other training.
        order = RoundOrder(schedule=Schedule(**schedule) if schedule else None, **values)
        slot = self._slots[DELTA_OUT[order.round % 2]]
        report = self._session.run_round(order, slot, self._take_rebases)
        self._rounds.append(order.round)
        self._outbox.send(
            "round",
            round=report.round,
            loss=report.loss,
            steps=report.steps,
            tokens=report.tokens,
            seconds=round(report.seconds, 6),
        )

    def _evaluate(self, tag: str) -> None:
        began = time.perf_counter()
        measured = self._session.evaluate(self._slots[EVALUATE_IN])
        took = round(time.perf_counter() - began, 6)
        self._outbox.send("evaluated", tag=tag, measured=measured, seconds=took)

    def _batch_losses(self, tag: str) -> None:
        began = time.perf_counter()
        losses = self._session.batch_losses(self._slots[EVALUATE_IN])
        took = round(time.perf_counter() - began, 6)
        # JSON has no word for what is no number.
        finite = [loss if math.isfinite(loss) else None for loss in losses]
        self._outbox.send("batch-losses", tag=tag, losses=finite, seconds=took)


def main() -> NoReturn:
    """Read the configuration, say "ready", train until told to stop."""
    # Ctrl-C on a terminal is for the node, which then closes our stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outbox, inbox = Outbox(), Inbox()
    threading.Thread(target=read_commands, args=(inbox,), name="commands", daemon=True).start()
    try:
        _serve(inbox, outbox)
    except TrainingError as error:
        if error.__cause__ is not None:
            # It comes out of a task: whoever wrote that wants to know where.
            traceback.print_exc()
        message = str(error)
    except MemoryError:
        message = "out of memory; make batch or sequence smaller"
    except Exception as error:
        traceback.print_exc()
        message = f"internal error: {type(error).__name__}: {error}"
        if type(error).__name__ == "OutOfMemoryError":
            message = "the GPU is out of memory; make batch or sequence smaller"
    _end(outbox, message)


def _serve(inbox: Inbox, outbox: Outbox) -> NoReturn:
    configuration = inbox.first()
    loading = None
    if configuration.get("cmd") == "prepare":
        limit_threads(configuration["threads"])
        loading = threading.Thread(target=_load, name="loading", daemon=True)
        loading.start()
        configuration = inbox.first()
    if configuration.pop("cmd", None) != "configure" or "memory_fd" not in configuration:
        raise AssertionError("the first command must be configure, with a memory_fd")
    memory = int(configuration.pop("memory_fd"))
    limit_threads(configuration.get("threads", 1))

    # Only now: OpenMP reads its number of threads when torch is loaded. A node that has forked this
    # process may have loaded it before.
    import torch

    torch.set_num_threads(int(configuration.get("threads", 1)))

    from shoal.training.session import SessionConfig, TrainingSession, read_material

    config = SessionConfig.from_json(configuration)
    leader = None
    if config.processes > 1:
        from shoal.training.group import Leader

        leader = Leader(configuration, config.processes, lambda why: _end(outbox, why))
    # The start is over when the model is built, or when it takes so long that it is told of; from
    # then on the node and everybody else come first.
    stand_back = cache(partial(os.nice, config.nice))

    def tell(done: int, of: int) -> None:
        stand_back()
        outbox.send("reading", done=done, of=of)

    material = read_material(config, tell)
    # The node needs to know this before it can ask to be let in; the model takes seconds more.
    outbox.send("text", shard_tokens=material.shard_tokens)
    if loading is not None:
        loading.join()
    session = TrainingSession(config, material)
    if leader is not None:
        session.lead(leader)
    slots = map_slots(memory, session.parameters)
    stand_back()
    outbox.send(
        "ready",
        params=session.parameters,
        step_tokens=session.step_tokens,
        device=str(session.model.device),
        torch=torch.__version__,
    )
    Worker(session, slots, inbox, outbox).run()


def _end(outbox: Outbox, message: str) -> NoReturn:
    outbox.send("error", message=" ".join(message.split()))
    # Not sys.exit: the reader's thread is inside a read that only ends with the process.
    os._exit(1)


def _load() -> None:
    """Import what takes seconds, before it is known what to train."""
    with loading():
        # First: the text needs no more than this.
        import shoal.training.session  # noqa: F401, I001
        import transformers

        # It loads its parts when they are asked for; these every model needs.
        for part in ("AutoModelForCausalLM", "GenerationMixin", "PreTrainedModel"):
            getattr(transformers, part)


def map_slots(descriptor: int, parameters: int) -> "list[torch.Tensor]":
    """Map the shared memory as four float32 vectors; raises TrainingError where it does not fit."""
    import torch

    size = os.fstat(descriptor).st_size
    if size != SLOTS * parameters * 4:
        raise TrainingError(
            f"the model has {parameters} parameters, but the node shares {size} bytes, not "
            f"{SLOTS * parameters * 4}: its model is another one"
        )
    memory = mmap.mmap(descriptor, size)
    os.close(descriptor)
    return list(torch.frombuffer(memory, dtype=torch.float32).view(SLOTS, parameters).unbind())


def read_commands(inbox: Inbox) -> None:
    """Put what comes on stdin into the inbox; its end ends this process, whatever that is doing."""
    with suppress(OSError), os.fdopen(os.dup(0), "rb") as lines:
        while line := lines.readline(COMMAND_BYTES_MAX):
            try:
                command = json.loads(line)
            except ValueError:
                # The end of a line that a dying parent did not finish; its end follows.
                print("the training process was sent a line that is not JSON", file=sys.stderr)
                break
            if command.get("cmd") == "stop":
                break
            inbox.put(command)
    os._exit(0)


if __name__ == "__main__":
    main()
