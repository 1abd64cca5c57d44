"""What a cut gives: computed by its proposer, recomputed by everybody who signs it. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.compression.codec import SparseDelta, decode
from shoal.gossip.anchor import Anchor
from shoal.gossip.book import DeltaBook
from shoal.gossip.delta import Delta
from shoal.gossip.parameters import (
    Contribution,
    EpochParameters,
    contribution_of,
    next_parameters,
)
from shoal.gossip.schema import ModelSchema
from shoal.gossip.settled import SettledState
from shoal.node.identity import verify

# (id, shard tokens, share in thousandths) of each member, as the ledger has them.
Members = Sequence[tuple[bytes, int, int]]
# Decoded deltas of a cut that are held while it is worked out; beyond, they are decoded each time
# that they are asked for.
HELD_BYTES_MAX = 128 << 20


class Coming(NamedTuple):
    """What the next height's parameters follow from besides its cut: agreed by the validators."""

    members: Members
    clip_factor: float
    kept_per_chunk: int
    normalise_steps: bool
    trust: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The next height: anchor, root, parameters, and what is settled with it."""

    anchor: Anchor
    root: bytes
    parameters: EpochParameters
    settled: SettledState
    out_of_range: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """A delta that may count, decoded, with its integer steps and the epoch it is of."""

    sparse: SparseDelta
    increments: NDArray[np.int32]
    parameters: EpochParameters


def open_delta(delta: Delta, book: DeltaBook, schema: ModelSchema) -> Opened:
    """Verify and decode a delta; raises DeltaError or FrameError where it may not count."""
    parameters = book.examine(delta.header)
    delta.require_signature(verify)
    sparse = decode(delta.frame, schema.layout, kept_per_chunk=parameters.kept_per_chunk)
    increments = parameters.increments(
        sparse, sender=delta.header.sender, steps=delta.header.steps, schema=schema
    )
    return Opened(sparse, increments, parameters)


def work_out(
    base: DeltaBook,
    committed: Anchor,
    deltas: Sequence[Delta],
    basis: Coming | EpochParameters,
) -> Outcome:
    """Add the deltas of a cut to a copy of `committed`; the next parameters follow from `basis`,
    or are it.

    Raises GossipError or FrameError where one of the deltas may not be in the cut.
    """
    anchor, schema = committed.copy(), committed.schema
    contributions: list[Contribution] = []
    room = HELD_BYTES_MAX
    for delta in deltas:
        opened = open_delta(delta, base, schema)
        anchor.apply(opened.sparse, opened.increments)
        room -= opened.sparse.indices.nbytes + opened.sparse.codes.nbytes
        contributions.append(
            contribution_of(
                delta.header,
                opened.sparse,
                parameters=opened.parameters,
                schema=schema,
                load=_loader(delta.frame, opened.sparse if room >= 0 else None, schema),
            )
        )
    parameters = (
        basis
        if isinstance(basis, EpochParameters)
        else next_parameters(
            base.parameters(base.height),
            contributions,
            basis.members,
            schema,
            clip_factor=basis.clip_factor,
            kept_per_chunk=basis.kept_per_chunk,
            normalise_steps=basis.normalise_steps,
            aligned=basis.trust,
        )
    )
    return Outcome(
        anchor=anchor,
        root=anchor.root(),
        parameters=parameters,
        settled=base.settled.after((d.header.key for d in deltas), parameters),
        out_of_range=anchor.out_of_range(),
    )


def _loader(
    frame: bytes, held: SparseDelta | None, schema: ModelSchema
) -> Callable[[], SparseDelta]:
    return lambda: decode(frame, schema.layout) if held is None else held
