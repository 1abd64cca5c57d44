"""delta-log: everybody adds the same set of sparse deltas to an integer anchor. The default.

    e    <- beta e + d                                     d: began - trained, of H local steps
    q    = C(e) ;  e <- e - s q                            s: the clip that receivers apply
    A    <- A - round(alpha w_i s q 2^f)                   for every q, in any order
    x    = A 2^-f - share e                                where the next steps start

Thin on purpose: residual, selection and frame are compression's, the sum is anchor.py's, and gain,
weights and clip come from the epoch's parameters; node/round.py says its deltas with `say`.

With `closed` a round's set is agreed first and trust.py weighs it.

Source: SparseLoCo (arXiv 2508.15706) on a replicated log; reference/algorithms.md 1.4.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.compression.codec import SparseDelta, encode
from shoal.compression.residual import Residual
from shoal.compression.select import NonFiniteError, select
from shoal.gossip.anchor import Anchor, increments
from shoal.gossip.delta import DeltaHeader
from shoal.gossip.errors import DeltaError
from shoal.gossip.mixing import Row
from shoal.gossip.parameters import (
    EpochParameters,
    clip_scales,
    contribution_of,
    next_parameters,
)
from shoal.gossip.schema import ModelSchema
from shoal.gossip.strategies.shared import Shared
from shoal.gossip.strategies.strategy import Framed, Reach, Work
from shoal.gossip.trust import Heading, Voice, close_round

# Deltas name epochs; so many are remembered, which bounds how late one may come.
EPOCHS_KEPT = 4


def say(
    residual: Residual, parameters: EpochParameters, schema: ModelSchema, steps: int
) -> tuple[SparseDelta, bytes]:
    """The largest of what is unsaid, taken out of the residual as receivers decode it; its frame.

    steps: of the round. Raises NonFiniteError, with the residual as it was.
    """
    kept = select(residual.error, schema.layout, parameters.kept_per_chunk)
    residual.subtract(kept, clip_scales(parameters, kept, steps))
    return kept, encode(kept)


@dataclass(frozen=True, eq=False)
class LogDelta(Framed):
    """A delta without its signature, whose size counts all the same."""

    header: DeltaHeader


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """What equal sets of deltas have alike: the anchor; in closed rounds also the heading, and
    how the last round's deltas were clipped."""

    anchor: Anchor
    heading: Heading | None = None
    closed: Mapping[bytes, tuple[LogDelta, NDArray[np.float64]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class LogState:
    """epochs: parameters in force, newest last; residual: e, float32 [P]; number: own deltas."""

    me: bytes
    live: Live
    epochs: tuple[EpochParameters, ...]
    residual: torch.Tensor
    number: int = 0

    @property
    def epoch(self) -> EpochParameters:
        """In force for what is said now."""
        return self.epochs[-1]

    def epoch_of(self, message: LogDelta) -> EpochParameters:
        """The one that a delta names; raises DeltaError where it is forgotten or to come."""
        for epoch in self.epochs:
            if epoch.height == message.header.height:
                return epoch
        raise DeltaError("unknown-epoch", f"height {message.header.height}")


@dataclass(frozen=True)
class DeltaLog:
    """genesis: the first epoch's parameters; beta, start_share, clip_factor: as in the mesh's;
    aligned, normalise_steps: as in next_parameters."""

    schema: ModelSchema
    genesis: EpochParameters
    mesh_id: bytes = bytes(32)
    beta: float = 0.95
    start_share: float = 0.3
    clip_factor: float = 2.0
    aligned: bool = True
    normalise_steps: bool = False
    closed: bool = False
    _shared: Shared[Live] = field(default_factory=Shared, init=False, repr=False)
    _tables: "WeakKeyDictionary[LogDelta, NDArray[np.int32]]" = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )

    @property
    def reach(self) -> Reach:
        """Everybody, in any order; a closed round needs agreement on its set."""
        return Reach.AGREED if self.closed else Reach.EVERYBODY

    def begin(self, me: bytes, weights: torch.Tensor) -> LogState:
        """Start from the genesis."""
        live = self._shared.of(weights, frozenset(), lambda: self._first(weights))
        return LogState(me, live, (self.genesis,), torch.zeros_like(weights))

    def join(self, me: bytes, donor: LogState, number: int) -> LogState:
        """A newcomer has the anchor and the epochs of any member, and nothing unsaid."""
        return replace(donor, me=me, residual=torch.zeros_like(donor.residual), number=number)

    def start(self, state: LogState) -> torch.Tensor:
        """The live anchor, less a share of what could not be said yet."""
        return state.live.anchor.to_weights().sub_(state.residual, alpha=self.start_share)

    def model(self, state: LogState) -> torch.Tensor:
        """The live anchor."""
        return state.live.anchor.to_weights()

    def speak(self, state: LogState, work: Work) -> tuple[LogState, LogDelta | None]:
        """Say the largest of delta and residual together."""
        residual = Residual(state.residual.clone(), self.beta)
        residual.absorb(work.delta)
        try:
            kept, frame = say(residual, state.epoch, self.schema, work.steps)
            header = DeltaHeader(
                mesh_id=self.mesh_id,
                sender=state.me,
                sequence=state.number + 1,
                height=state.epoch.height,
                steps=work.steps,
                tokens=work.tokens,
                frame_bytes=len(frame),
                frame_sha256=hashlib.sha256(frame).digest(),
            )
            said = LogDelta(state.me, header.sequence, frame, kept.layout, header)
            self._table(state, said)
        except (NonFiniteError, DeltaError):
            # Not to be said, and others would refuse it too.
            return replace(state, residual=torch.zeros_like(state.residual)), None
        return replace(state, residual=residual.error, number=said.number), said

    def listen(self, state: LogState, messages: Sequence[LogDelta], row: Row = {}) -> LogState:  # noqa: B006
        """Add deltas; in closed rounds all that were agreed on, at once."""
        if not messages:
            return state
        names = frozenset(message.header.id for message in messages)
        add = self._close if self.closed else self._plus
        live = self._shared.of(state.live, names, lambda: add(state, messages))
        state = replace(state, live=live)
        return self._unsay(state) if self.closed else state

    def turn(self, state: LogState, epoch: EpochParameters) -> LogState:
        """A cut was committed: `epoch` is in force from now on."""
        return replace(state, epochs=(*state.epochs, epoch)[-EPOCHS_KEPT:])

    def next_epoch(
        self,
        state: LogState,
        cut: Sequence[LogDelta],
        members: Sequence[tuple[bytes, int, int]],
        *,
        kept_per_chunk: int | None = None,
    ) -> EpochParameters:
        """What follows from a cut: the same for everybody, see parameters.next_parameters."""
        contributions = [
            contribution_of(
                message.header,
                message.delta,
                parameters=state.epoch_of(message),
                schema=self.schema,
                load=lambda delta=message.delta: delta,  # type: ignore[misc]
            )
            for message in cut
        ]
        return next_parameters(
            state.epoch,
            contributions,
            members,
            self.schema,
            clip_factor=self.clip_factor,
            kept_per_chunk=kept_per_chunk,
            aligned=self.aligned,
            normalise_steps=self.normalise_steps,
        )

    def _first(self, weights: torch.Tensor) -> Live:
        heading = Heading(np.zeros(weights.numel())) if self.closed else None
        return Live(Anchor.from_weights(self.schema, weights), heading)

    def _table(self, state: LogState, message: LogDelta) -> NDArray[np.int32]:
        table = self._tables.get(message)
        if table is None:
            epoch = state.epoch_of(message)
            table = epoch.increments(
                message.delta,
                sender=message.sender,
                steps=message.header.steps,
                schema=self.schema,
            )
            self._tables[message] = table
        return table

    def _plus(self, state: LogState, messages: Sequence[LogDelta]) -> Live:
        anchor = state.live.anchor.copy()
        for message in messages:
            anchor.apply(message.delta, self._table(state, message))
        return Live(anchor)

    def _close(self, state: LogState, messages: Sequence[LogDelta]) -> Live:
        heading = state.live.heading
        assert heading is not None, "closed rounds have a heading from the start"
        ordered = sorted(messages, key=lambda message: message.header.key)
        voices = [Voice(m.sender, m.delta, state.epoch_of(m), m.header.steps) for m in ordered]
        worths, heading = close_round(voices, heading)
        anchor = state.live.anchor.copy()
        for voice, worth in zip(voices, worths, strict=True):
            table = increments(
                voice.delta, **worth._asdict(), alpha=voice.epoch.alpha, schema=self.schema
            )
            anchor.apply(voice.delta, table)
        scales = [worth.scales for worth in worths]
        closed = {m.sender: (m, scale) for m, scale in zip(ordered, scales, strict=True)}
        return Live(anchor, heading, closed)

    def _unsay(self, state: LogState) -> LogState:
        """Put back what the round's clip took off one's own delta: only now is it known."""
        if state.me not in state.live.closed:
            return state
        said, scales = state.live.closed[state.me]
        residual = Residual(state.residual.clone(), self.beta)
        before = clip_scales(state.epoch_of(said), said.delta, said.header.steps)
        residual.restore(said.delta, before)
        residual.subtract(said.delta, scales)
        return replace(state, residual=residual.error)
