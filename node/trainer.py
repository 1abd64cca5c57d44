"""The parent's end of the training process.

Training runs in a child process at low priority, so that the event loop answers while all cores
multiply matrices. Control goes over its stdin and stdout as JSON lines; tensors lie in memory
that both map: an unlinked temporary file whose descriptor the child inherits. Nothing is pickled,
and nothing is left behind when either side is killed.

The child never waits for the parent: the next round is ordered while the current one runs, and a
new starting point is folded in at a step boundary (`rebase`), keeping the steps made since.
"""

import asyncio
import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import structlog
import torch

from shoal.node.errors import UserError
from shoal.node.trainer_child import TrainerChild, command_line

log = structlog.get_logger()

SLOT_WEIGHTS_IN = 0
SLOT_DELTAS_OUT = (1, 2)
SLOT_EVALUATE_IN = 3
SLOTS = 4
LINE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one round of local steps gave; the delta lies in the child's slot `round % 2`."""

    round: int
    loss: float
    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What weights are worth on held-out data, by name, and the seconds of training it cost."""

    measured: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class BatchLosses:
    """The loss of weights on each held-out batch, and the seconds of training it cost."""

    losses: list[float]
    seconds: float


class TrainingFailed(Exception):
    """The training process ended or reported an error; the message is one line."""


class SharedTensors:
    """Slots of `parameters` float32 values each, in memory that a child can map."""

    def __init__(self, file: IO[bytes], parameters: int) -> None:
        """file: of no length yet; close() closes it."""
        self._file = file
        size = SLOTS * parameters * 4
        self._file.truncate(size)
        self._map = mmap.mmap(self._file.fileno(), size)
        values = torch.frombuffer(self._map, dtype=torch.float32)
        self.slots: list[torch.Tensor] = list(values.view(SLOTS, parameters).unbind())

    @property
    def descriptor(self) -> int:
        """The file descriptor to hand to the child."""
        return self._file.fileno()

    def close(self) -> None:
        """Forget the memory; it is freed when the child has let go of it too."""
        self.slots = []
        self._file.close()


class TrainerProcess:
    """Commands and ends the training process, which somebody has started (trainer_child.py)."""

    def __init__(self, child: TrainerChild, parameters: int) -> None:
        self.memory = SharedTensors(child.memory, parameters)
        self.ready: dict[str, Any] = {}
        self._child = child
        self._commands: asyncio.WriteTransport | None = None
        self._events = asyncio.StreamReader(limit=LINE_BYTES_MAX)
        self._rounds: asyncio.Queue[RoundResult | TrainingFailed] = asyncio.Queue()
        self._evaluations: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._rebased = asyncio.Event()
        self._rebased.set()
        self._reader: asyncio.Task[None] | None = None

    async def start(self, configuration: Mapping[str, Any]) -> None:
        """Tell the child what to train; it is not ready yet when this returns."""
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._events), self._child.events
        )
        self._commands, _ = await loop.connect_write_pipe(asyncio.Protocol, self._child.commands)
        self._send(
            {"cmd": "configure", **configuration, "memory_fd": self.memory.descriptor},
        )

    async def shard_tokens(self) -> int:
        """Wait, once, until the child has read its text; returns how much of it there is.

        Raises UserError with the child's own line where the configuration or the data is wrong.
        """
        return int((await self._expect("text"))["shard_tokens"])

    async def started(self) -> None:
        """Wait, once and after that, until the child has built its model; raises UserError."""
        self.ready = await self._expect("ready")
        self._reader = asyncio.create_task(self._read_events(), name="trainer-events")

    async def _expect(self, kind: str) -> dict[str, Any]:
        event, told = await self._read_event(), -1
        while event is not None and event.get("event") == "reading":
            if (percent := 100 * event["done"] // max(1, event["of"])) > told:
                log.info("training.reading", percent=percent, of_mb=event["of"] // 10**6)
                told = percent
            event = await self._read_event()
        if event is None or event.get("event") != kind:
            message = (event or {}).get("message", "the training process ended at once")
            await self.stop()
            raise UserError(f"training cannot start: {message}")
        return event

    def order_round(
        self,
        number: int,
        *,
        steps: int,
        tokens_done: int,
        step_tokens: int,
        schedule: Mapping[str, float],
    ) -> None:
        """Queue a round; call it again before the round ends and the child never idles.

        schedule: learning_rate, warmup_tokens and schedule_tokens from this round on.
        """
        self._send(
            {
                "cmd": "round",
                "round": number,
                "steps": steps,
                "tokens_done": tokens_done,
                "tokens_per_step": step_tokens,
                "schedule": dict(schedule),
            }
        )

    async def next_result(self) -> RoundResult:
        """Wait for the next finished round; raises TrainingFailed."""
        result = await self._rounds.get()
        if isinstance(result, TrainingFailed):
            self._rounds.put_nowait(result)
            raise result
        return result

    def delta_slot(self, number: int) -> torch.Tensor:
        """Return where the delta of round `number` lies until round `number + 2` ends."""
        return self.memory.slots[SLOT_DELTAS_OUT[number % 2]]

    async def weights_slot(self) -> torch.Tensor:
        """Wait until the child has read the last weights, then return the slot to fill anew."""
        await self._rebased.wait()
        return self.memory.slots[SLOT_WEIGHTS_IN]

    def rebase(self, number: int) -> None:
        """Tell the child that the weights slot holds its new starting point.

        `number` is the newest round whose delta those weights account for.
        """
        self._rebased.clear()
        self._send({"cmd": "rebase", "round": number})

    def evaluation_slot(self) -> torch.Tensor:
        """Return where the weights to evaluate go."""
        return self.memory.slots[SLOT_EVALUATE_IN]

    async def evaluate(self, tag: str) -> Evaluated:
        """Return the held-out "loss" (nats per token) of the evaluation slot, between rounds, and
        whatever else a task measures."""
        event = await self._measured("evaluate", tag)
        return Evaluated(event["measured"], event["seconds"])

    async def batch_losses(self, tag: str) -> BatchLosses:
        """Return the loss of the evaluation slot on each held-out batch, between rounds; NaN where
        it is no number."""
        event = await self._measured("batch-losses", tag)
        losses = [math.nan if loss is None else loss for loss in event["losses"]]
        return BatchLosses(losses, event["seconds"])

    async def _measured(self, command: str, tag: str) -> dict[str, Any]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._evaluations[tag] = future
        self._send({"cmd": command, "tag": tag})
        return await future

    async def stop(self) -> None:
        """End the child: politely, then firmly."""
        if self._commands is None:
            return
        self._commands.close()
        await asyncio.to_thread(self._child.wait)
        if self._reader is not None:
            await self._reader
        self.memory.close()

    def _send(self, command: Mapping[str, Any]) -> None:
        assert self._commands is not None
        if not self._commands.is_closing():
            self._commands.write(command_line(command))

    async def _read_event(self) -> dict[str, Any] | None:
        line = await self._events.readline()
        return json.loads(line) if line else None

    async def _read_events(self) -> None:
        failure = "the training process ended unexpectedly"
        while (event := await self._read_event()) is not None:
            kind = event.pop("event")
            if kind == "round":
                self._rounds.put_nowait(RoundResult(**event))
            elif kind == "rebased":
                self._rebased.set()
            elif kind in ("evaluated", "batch-losses"):
                future = self._evaluations.pop(event["tag"], None)
                if future is not None and not future.done():
                    future.set_result(event)
            elif kind == "error":
                failure = str(event["message"])
            else:
                raise AssertionError(f"the training process said {kind!r}")
        self._rebased.set()
        self._rounds.put_nowait(TrainingFailed(failure))
        for future in self._evaluations.values():
            if not future.done():
                future.set_exception(TrainingFailed(failure))
