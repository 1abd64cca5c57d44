"""How good the newest committed model is on this node's held-out text, measured between rounds.

It stops training for as long as it takes, so it takes its turn only now and then.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from shoal.node.round import RoundFacts
from shoal.node.run_rows import Evaluated, Row, loss_or_none
from shoal.node.shared_model import SharedModel
from shoal.node.trainer import TrainerProcess, TrainingFailed

log = structlog.get_logger()

# After one evaluation: so many times as long as it took there is none, so that where checkpoints
# come quickly no more than a fiftieth of the time is spent on it. Once training is over all are.
EVALUATION_REST = 50
# What else is measured in the same place (spot_checks.py).
Check = Callable[[], Awaitable[None]]


class Evaluation:
    """At most one at a time: while one is under way, and for a while after, newer heights go
    without."""

    def __init__(
        self, model: SharedModel, facts: Callable[[], RoundFacts], tell: Callable[[Row], None]
    ) -> None:
        self._model = model
        self._tell = tell
        self._facts = facts
        self._task: asyncio.Task[None] | None = None
        self._rest_until = 0.0

    def soon(self, trainer: TrainerProcess, check: Check | None = None) -> None:
        """Measure the committed model, unless the trainer is not ready or one is being measured,
        or was a short while ago; then `check`, which needs the same place, and rests by itself."""
        if not trainer.ready or (self._task is not None and not self._task.done()):
            return
        resting = asyncio.get_running_loop().time() < self._rest_until
        resting = resting and self._facts().state != "finished"
        if not resting or check is not None:
            work = self._work(trainer, check, resting=resting)
            self._task = asyncio.create_task(work, name="evaluation")

    async def _work(self, trainer: TrainerProcess, check: Check | None, *, resting: bool) -> None:
        try:
            if not resting:
                await self._evaluate(trainer)
            if check is not None:
                await check()
        except TrainingFailed:
            return

    async def _evaluate(self, trainer: TrainerProcess) -> None:
        height, committed = self._model.height, self._model.committed
        await self._model.compute(lambda: committed.to_weights(out=trainer.evaluation_slot()))
        found = await trainer.evaluate(str(height))
        now = asyncio.get_running_loop().time()
        self._rest_until = now + EVALUATION_REST * found.seconds
        measured = found.measured
        self._facts().evaluations[height] = measured["loss"]
        values = {f"held_out_{name}": round(value, 4) for name, value in measured.items()}
        log.info("checkpoint.evaluated", height=height, **values)
        held_out = loss_or_none(measured["loss"])
        self._tell(Evaluated(time_s=time.time(), height=height, held_out_loss=held_out))

    async def close(self) -> None:
        """Give up what is being measured."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
