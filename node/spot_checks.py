"""After each committed cut: does what one of the members said in it make the model worse?

Whom to ask that about, and when the answer is harm, is in gossip/spot_check.py. Here it is measured
in the training process, between rounds, on text that this node holds out; where this node votes,
two such answers in a row become its objection, an operation of the log (consensus/changes.py). It
says so again in each further term and epoch for as long as it is of that mind.

Only where the mesh parameter evict_harmful says so. A cut goes without while something is being
measured, for a while after each check, and where this node lags behind.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from shoal.compression.codec import SparseDelta, decode
from shoal.consensus.changes import objection
from shoal.gossip.anchor import Anchor
from shoal.gossip.delta import Delta, DeltaReference
from shoal.gossip.schema import ModelSchema
from shoal.gossip.settled import SettledState
from shoal.gossip.spot_check import (
    HARMLESS,
    Comparison,
    Strikes,
    compare,
    draw,
    louder,
    others_progressed,
)
from shoal.node.certified import Certified
from shoal.node.consensus_driver import ConsensusDriver
from shoal.node.identity import Identity, short
from shoal.node.membership import approval
from shoal.node.mesh_parameters import ParametersInForce
from shoal.node.shared_model import Before, SharedModel
from shoal.node.trainer import TrainerProcess

log = structlog.get_logger()

# After a check: so many times as long as it took there is none, so that where checkpoints come
# quickly no more than a twentieth of the time is spent on it.
SPOT_CHECK_REST = 20


class NewestCut(NamedTuple):
    """A cut that this node has just added: where it began, and where it led."""

    found: Certified
    before: Before
    after: Anchor


class Said(NamedTuple):
    """A delta of a cut: what it added there, and what it would have if its sender were believed
    wholly (increments, int32 [T, 4])."""

    sparse: SparseDelta
    added: NDArray[np.int32]
    believed: NDArray[np.int32]


def read(delta: Delta, schema: ModelSchema, settled: SettledState) -> Said:
    """settled: what the cut was judged by."""
    header = delta.header
    epoch = settled.parameters(header.height)
    sparse = decode(delta.frame, schema.layout)
    added = epoch.increments(sparse, sender=header.sender, steps=header.steps, schema=schema)
    return Said(sparse, added, louder(added, epoch.trusted[header.sender]))


def without(anchor: Anchor, said: Sequence[Said]) -> Anchor:
    """The model after a cut, less what some deltas added to it: exactly."""
    rest = anchor.copy()
    for each in said:
        rest.undo(each.sparse, each.added)
    return rest


def with_all_of(anchor: Anchor, said: Sequence[Said]) -> Anchor:
    """A model and these deltas, believed wholly."""
    whole = anchor.copy()
    for each in said:
        whole.apply(each.sparse, each.believed)
    return whole


class SpotChecks:
    """One member a cut, the same one at every node."""

    def __init__(
        self,
        identity: Identity,
        model: SharedModel,
        mesh: ParametersInForce,
        consensus: ConsensusDriver,
    ) -> None:
        self.strikes = Strikes()
        self._rest_until = 0.0
        self._identity = identity
        self._model = model
        self._mesh = mesh
        self._consensus = consensus

    def of(self, trainer: TrainerProcess, found: Certified) -> Callable[[], Awaitable[None]] | None:
        """The check of the newest checkpoint here, `found`; None where nothing is to be checked."""
        before = self._model.before
        if before is None or self._consensus.replica.ledger.height > found.height:
            return None
        resting = asyncio.get_running_loop().time() < self._rest_until
        if resting or not self._mesh.now().evict_harmful:
            return None
        return partial(self._check, trainer, NewestCut(found, before, self._model.committed))

    async def _check(self, trainer: TrainerProcess, cut: NewestCut) -> None:
        """Draw, measure, remember, and object where it is time; raises TrainingFailed."""
        trusted = cut.found.parameters.trusted
        said = {
            entry.member: trusted[entry.member]
            for entry in cut.found.cut
            if entry.member in trusted
        }
        if not said:
            return
        member = draw(cut.found.record.digest, cut.found.height, said)
        if member != self._identity.node_id:
            own = [entry for entry in cut.found.cut if entry.member == member]
            compared = await self._compare(trainer, cut, own)
            if compared is not None:
                self._judge(member, compared, cut.found.height)
        self._object()

    async def _compare(
        self, trainer: TrainerProcess, cut: NewestCut, own: Sequence[DeltaReference]
    ) -> Comparison | None:
        """What a member's word does among the others', and if that is harm, what it does alone;
        None where that cannot be said."""
        deltas = [delta for entry in own if (delta := await self._model.load(entry)) is not None]
        if len(deltas) < len(own):
            return None

        async def losses(make: Callable[[], Anchor]) -> list[float]:
            slot = trainer.evaluation_slot()
            await self._model.compute(lambda: make().to_weights(out=slot))
            found = await trainer.batch_losses(f"spot check {cut.found.height}")
            now = asyncio.get_running_loop().time()
            self._rest_until = max(self._rest_until, now) + SPOT_CHECK_REST * found.seconds
            return found.losses

        schema, start = cut.after.schema, cut.before.anchor
        said = await self._model.compute(
            lambda: [read(delta, schema, cut.before.settled) for delta in deltas]
        )
        rest = await self._model.compute(lambda: without(cut.after, said))
        others = await losses(lambda: rest)
        among = compare(await losses(lambda: with_all_of(rest, said)), others)
        if among is None or not among.is_harmful:
            return among
        before = await losses(lambda: start)
        if not others_progressed(before, others):
            return HARMLESS
        return compare(await losses(lambda: with_all_of(start, said)), before)

    def _judge(self, member: bytes, compared: Comparison, height: int) -> None:
        self.strikes.judge(member, harmful=compared.is_harmful)
        if compared.is_harmful:
            log.warning(
                "member.harmful",
                member=short(member),
                height=height,
                nats=round(compared.nats, 4),
                standard_error=round(compared.error, 4),
                strikes=self.strikes.of(member),
            )

    def _object(self) -> None:
        """Say again what the log does not know yet, where it would count."""
        replica = self._consensus.replica
        for member in self.strikes.objected():
            change = objection(member, replica.ledger.height)
            epoch = replica.validators.epoch
            operation = approval(self._identity, self._model.mesh_id, epoch, change)
            # Not of one that does not vote, said already, or about one that is gone.
            if replica.check(operation) is None:
                log.warning("member.objected", member=short(member), term=change.term)
                self._consensus.submit(operation)
