"""The data path on one screen: what a node does with its data, round after round.

    train -> delta + residual -> compress -> sign -> announce
    pull -> verify -> decompress -> add                              (node/gossip_driver.py)
    every E rounds: cut -> root -> attest -> PBFT -> certificate     (node/consensus_driver.py)

The training process never waits for any of this: it makes the steps of round r + 1 while the
delta of round r is compressed, and folds a new starting point in at a step boundary: after each own
round, and as soon as others have said something.
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog
import torch

from shoal.compression.residual import Residual
from shoal.compression.select import NonFiniteError
from shoal.gossip.delta import Delta, DeltaHeader, make_delta
from shoal.gossip.errors import DeltaError
from shoal.gossip.pace import Pace
from shoal.gossip.parameters import EpochParameters
from shoal.gossip.strategies.delta_log import say
from shoal.node.config import TrainSettings
from shoal.node.identity import Identity
from shoal.node.own_mean import OwnMean
from shoal.node.run_rows import RoundDone, Row, Stages, loss_or_none
from shoal.node.shared_model import SharedModel, Unsaid
from shoal.node.snapshots import Snapshots
from shoal.node.trainer import RoundResult, TrainerProcess

log = structlog.get_logger()

# While so many own deltas wait for a cut, because the mesh cannot commit, further rounds are kept
# in the residual instead: they are said when there is somebody to hear.
OWN_PENDING_MAX = 256
# After a starting point was made because of others: so many times as long as that took, none is,
# so that a large model spends no more than a twentieth of its time on it.
FOLD_REST = 20


@dataclass(slots=True)
class RoundFacts:
    """What `shoal status` shows of training."""

    state: str = "starting"
    sequence: int = 0
    loss: float = 0.0
    steps: int = 0
    tokens: int = 0
    tokens_per_second: float = 0.0
    round_seconds: float = 0.0
    computing_seconds: float = 0.0
    began_at: float = 0.0
    ended_at: float = 0.0
    frame_bytes: int = 0
    values_kept: int = 0
    values_dense: int = 0
    residual_norm: float = 0.0
    evaluations: dict[int, float] = field(default_factory=dict)


class RoundLoop:
    """Turns finished training rounds into published deltas."""

    def __init__(
        self,
        *,
        identity: Identity,
        model: SharedModel,
        trainer: TrainerProcess,
        train: TrainSettings,
        directory: Path,
        sequence: int,
        tell: Callable[[Row], None],
    ) -> None:
        self._identity = identity
        self._model = model
        self._trainer = trainer
        self._step_tokens = int(trainer.ready["step_tokens"])
        self._max_rounds = train.max_rounds
        self._snapshots = Snapshots(directory, train.snapshot_rounds)
        self._own = OwnMean(directory, model.schema, train.own_mean_rounds)
        self._writing: asyncio.Task[None] | None = None
        self._tell = tell
        # A round's number says which text it reads: a node that comes back reads on.
        self._ordered = sequence
        # The newest round whose delta the anchor and the residual account for.
        self._accounted = 0
        self._in_flight = 0
        self.facts = RoundFacts(sequence=sequence)
        self.residual = Residual(torch.zeros(model.schema.layout.total), model.rules.beta)
        self._pace = Pace(identity.node_id)
        # Somebody else's delta is in the live anchor and not yet in what the child trains.
        self._news = asyncio.Event()
        self._told = model.on_added
        model.on_added = self._on_added

    def _on_added(self, header: DeltaHeader) -> None:
        self._told(header)
        now_s = asyncio.get_running_loop().time()
        self._pace.heard(header.sender, header.tokens, now_s)
        if header.sender != self._identity.node_id:
            self._news.set()

    async def run(self) -> None:
        """Train and publish until `max_rounds` deltas exist; 0 means for ever."""
        self.facts.state = "waiting for membership"
        await self._model.wait_until_member(self._identity.node_id)
        self.facts.state = "training"
        self.facts.began_at = asyncio.get_running_loop().time()
        await self._start_from_anchor()
        self._order_round()
        self._order_round()
        while self.facts.sequence < (self._max_rounds or math.inf):
            result = await self._next_result()
            self._in_flight -= 1
            stages = Stages()
            stages.add("train", result.seconds)
            delta = await self._make_delta(result, stages)
            if delta is not None:
                with stages("publish"):
                    await self._publish_or_skip(delta)
                if delta.header.sequence == 1:
                    age_s = time.time() - psutil.Process().create_time()
                    log.info("delta.first", seconds_after_start=round(age_s, 1))
                await self._keep_own(result.round)
            self._accounted = result.round
            with stages("rebase"):
                await self._start_from_anchor()
            self._order_round()
            self._note(result, 0 if delta is None else len(delta.frame), stages)
        await self._written()
        self.facts.state = "finished"
        self.facts.ended_at = asyncio.get_running_loop().time()
        log.info("training.finished", rounds=self.facts.sequence)

    async def _next_result(self) -> RoundResult:
        """Wait for the next finished round, and meanwhile hand on what others say."""
        result = asyncio.ensure_future(self._trainer.next_result())
        news = asyncio.ensure_future(self._news.wait())
        try:
            while not result.done():
                await asyncio.wait((result, news), return_when=asyncio.FIRST_COMPLETED)
                if news.done() and not result.done():
                    took_s = await self._start_from_anchor()
                    news = asyncio.ensure_future(self._news.wait())
                    await asyncio.wait((result,), timeout=FOLD_REST * took_s)
            return result.result()
        finally:
            result.cancel()
            news.cancel()

    async def _publish_or_skip(self, delta: Delta) -> None:
        try:
            await self._model.add(delta, own=True)
        except DeltaError as error:
            # Others would refuse it too: a step too far, or a membership that ended.
            log.error("round.refused", round=delta.header.sequence, why=str(error))
            await self._model.compute(self.residual.clear)

    async def _make_delta(self, result: RoundResult, stages: Stages) -> Delta | None:
        """Residual, selection, compression, signature: the delta of one finished round."""
        parameters = self._model.parameters
        self.residual.beta = self._model.rules.beta
        try:
            frame = await self._model.compute(
                lambda: self._compress(
                    self._trainer.delta_slot(result.round), result.steps, parameters, stages
                )
            )
        except NonFiniteError:
            log.error("round.skipped", round=result.round, why="its delta is not finite")
            await self._model.compute(self.residual.clear)
            return None
        if frame is None:
            log.warning("round.held-back", round=result.round, why="too many wait for a cut")
            return None
        self.facts.sequence += 1
        with stages("sign"):
            return make_delta(
                frame,
                mesh_id=self._model.mesh_id,
                sender=self._identity.node_id,
                sequence=self.facts.sequence,
                height=parameters.height,
                steps=result.steps,
                tokens=result.tokens,
                sign=self._identity.sign,
            )

    def _compress(
        self, delta: torch.Tensor, steps: int, parameters: EpochParameters, stages: Stages
    ) -> bytes | None:
        with stages("residual"):
            self.residual.absorb(delta)
        if self._model.book.pending_of(self._identity.node_id) >= OWN_PENDING_MAX:
            return None
        with stages("compress"):
            kept, frame = say(self.residual, parameters, self._model.schema, steps)
        self.facts.frame_bytes += len(frame)
        self.facts.values_kept += len(kept.indices)
        self.facts.values_dense += self._model.schema.layout.total
        self.facts.residual_norm = float(self.residual.error.norm())
        return frame

    async def _keep_own(self, number: int) -> None:
        """What this node knows after a round, where it is asked to keep that."""
        sequence = self.facts.sequence
        asked = sequence in self._snapshots.rounds
        if not asked and not self._own.wanted:
            return
        last = sequence == self._max_rounds
        due = last or sequence % self._model.rules.rounds_per_checkpoint == 0
        # The child began the round, or will begin the next, from what still lies in its slot.
        start = await self._trainer.weights_slot()

        def keep() -> torch.Tensor | None:
            delta = self._trainer.delta_slot(number)
            if self._own.wanted:
                self._own.add(start, delta)
            if asked:
                kinds = {"own": start - delta, "live": self._model.live.to_weights()}
                mean = {} if self._own.weights is None else {"mean": self._own.weights}
                self._snapshots.keep(sequence, {**kinds, **mean})
            # The next round changes it while this one is on its way to the disk.
            return self._own.weights.clone() if due and self._own.weights is not None else None

        mean = await self._model.compute(keep)
        if mean is not None:
            # A slow disk delays neither what others say nor the next round.
            await self._written()
            self._writing = asyncio.create_task(asyncio.to_thread(self._own.write, sequence, mean))

    async def _written(self) -> None:
        if self._writing is not None:
            await self._writing

    async def _start_from_anchor(self) -> float:
        """Give the child its new starting point: the live anchor, less a share of the unsaid.

        Returns the seconds that it took to make.
        """
        slot = await self._trainer.weights_slot()
        share = self._model.rules.start_share
        self._news.clear()

        def fill() -> float:
            began = time.perf_counter()
            self._model.live.to_weights(out=slot)
            slot.add_(self.residual.error, alpha=-share)
            return time.perf_counter() - began

        took_s = await self._model.compute(fill)
        self._trainer.rebase(self._accounted)
        return took_s

    def _order_round(self) -> None:
        if self._max_rounds and self.facts.sequence + self._in_flight >= self._max_rounds:
            return
        self._ordered += 1
        self._in_flight += 1
        mesh = self._model.rules
        self._trainer.order_round(
            self._ordered,
            steps=self._pace.steps(mesh.local_steps),
            tokens_done=self._model.tokens,
            step_tokens=self._step_tokens * max(1, len(self._model.parameters.members)),
            schedule={
                "learning_rate": mesh.learning_rate,
                "warmup_tokens": mesh.warmup_tokens,
                "schedule_tokens": mesh.schedule_tokens,
            },
        )

    def _note(self, result: RoundResult, frame_bytes: int, stages: Stages) -> None:
        facts = self.facts
        facts.loss = result.loss
        facts.steps += result.steps
        facts.tokens += result.tokens
        facts.computing_seconds += result.seconds
        facts.round_seconds = result.seconds
        facts.tokens_per_second = result.tokens / max(result.seconds, 1e-9)
        log.info(
            "round.published",
            round=facts.sequence,
            loss=round(result.loss, 4),
            seconds=round(result.seconds, 2),
            bytes=frame_bytes,
        )
        self._tell(
            RoundDone(
                time_s=time.time(),
                round=facts.sequence,
                height=self._model.height,
                loss=loss_or_none(result.loss),
                steps=result.steps,
                tokens=result.tokens,
                tokens_total=facts.tokens,
                seconds=round(result.seconds, 4),
                delta_bytes=frame_bytes,
                stages=stages.done,
            )
        )

    async def say_again(self, unsaid: list[Unsaid]) -> None:
        """Own deltas that no cut took: what they said goes back into the residual."""

        def restore() -> None:
            for delta in unsaid:
                self.residual.restore(delta.sparse, delta.scales)

        if unsaid:
            log.warning("round.expired", rounds=[delta.header.sequence for delta in unsaid])
            await self._model.compute(restore)
