"""Which sequence numbers are over and done with: a pure function of the committed cuts.

A delta made under height p may enter the cuts p+1 .. p+1+staleness. A sender's heights never
decrease along its sequence numbers, so once one of its deltas was in cut h, everything it
numbered before that was made under a height below h and is out of time when cut h + staleness is
committed. Hence two things are enough to refuse every repetition for ever:

    floor(m)  the largest sequence of m in any cut up to height - staleness:
              all of m's sequences up to it are settled, in or out;
    recent    the cuts of the last `staleness` heights, as (member, sequence).

Nothing local enters: no clock, no arrival order, not even which deltas a node ever saw. So every
member has the same bytes at the same height, and a digest of them can be certified for those who
join later. The parameters of the epochs that deltas may still name are part of it, because
without them the next deltas cannot be applied.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from struct import Struct, error, pack, unpack_from

from shoal.gossip.delta import COUNTER_MAX, DeltaKey
from shoal.gossip.errors import DeltaError, GossipError
from shoal.gossip.parameters import MEMBERS_MAX, PARAMETERS_BYTES_MAX, EpochParameters

CUT_MAX = 4096
STALENESS_MAX = 16
DOMAIN = b"SHOAL-SETTLED\x01"
# height, staleness, epochs, recent cuts, floors
FIXED = Struct(">QBBBH")
FLOOR = Struct(">32sQ")
RUN = Struct(">32sH")
# Hard limit before parsing; a real state of few members is a few KiB.
SETTLED_BYTES_MAX = (
    FIXED.size
    + (STALENESS_MAX + 1) * (4 + PARAMETERS_BYTES_MAX)
    + (STALENESS_MAX + 1) * MEMBERS_MAX * FLOOR.size
    + STALENESS_MAX * (2 + CUT_MAX * (RUN.size + 8))
)

Cut = tuple[DeltaKey, ...]


@dataclass(frozen=True)
class SettledState:
    """What the committed cuts up to `height` settle; build it with `genesis`, `after` or bytes.

    epochs: parameters of the heights that deltas may still name, ascending, the last one is
    `height`; floors: (member, floor) in order, floors of 0 left out; recent: the last cuts,
    oldest first, each in order.
    """

    height: int
    staleness: int
    epochs: tuple[EpochParameters, ...]
    floors: tuple[tuple[bytes, int], ...]
    recent: tuple[Cut, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.staleness <= STALENESS_MAX or not 0 <= self.height <= COUNTER_MAX:
            raise GossipError("bad-settled", "height or staleness out of range")
        heights = [parameters.height for parameters in self.epochs]
        if heights != list(range(max(0, self.height - self.staleness), self.height + 1)):
            raise GossipError("bad-settled", "not the epochs that deltas may name")
        if len(self.recent) != min(self.staleness, self.height):
            raise GossipError("bad-settled", "not the cuts that deltas may still repeat")
        members = [member for member, _ in self.floors]
        if not _ascending(members) or not all(1 <= n <= COUNTER_MAX for _, n in self.floors):
            raise GossipError("bad-settled", "floors out of order or out of range")
        for cut in self.recent:
            if len(cut) > CUT_MAX or not _ascending(cut):
                raise GossipError("bad-settled", "a cut too large or out of order")
            if not all(1 <= sequence <= COUNTER_MAX for _, sequence in cut):
                raise GossipError("bad-settled", "a sequence out of range")

    @classmethod
    def genesis(cls, parameters: EpochParameters, *, staleness: int) -> "SettledState":
        """Before any cut; `parameters` are those of height 0."""
        return cls(0, staleness, (parameters,), (), ())

    def after(self, cut: Iterable[DeltaKey], parameters: EpochParameters) -> "SettledState":
        """The state once `cut` is committed with these parameters at the next height.

        Floors are kept for those who are a member of some epoch that deltas may still name. A
        member that left longer ago has nothing that could be repeated: its deltas are stale.
        """
        assert parameters.height == self.height + 1, "cuts are committed in order of height"
        keys = tuple(sorted(cut))
        assert len(keys) <= CUT_MAX and _ascending(keys), "a cut names a delta once"
        recent = (*self.recent, keys)
        leaving = recent[: len(recent) - self.staleness] if len(recent) > self.staleness else ()
        epochs = (*self.epochs, parameters)[-(self.staleness + 1) :]
        floors = dict(self.floors)
        for member, sequence in (key for old in leaving for key in old):
            floors[member] = max(sequence, floors.get(member, 0))
        alive = frozenset[bytes]().union(*(epoch.members for epoch in epochs))
        return SettledState(
            height=parameters.height,
            staleness=self.staleness,
            epochs=epochs,
            floors=tuple(sorted((m, floor) for m, floor in floors.items() if m in alive)),
            recent=recent[len(leaving) :],
        )

    @property
    def oldest_height(self) -> int:
        """The smallest height that a delta may name now."""
        return self.epochs[0].height

    def parameters(self, height: int) -> EpochParameters:
        """What deltas made under `height` are worth; raises DeltaError("stale" or "future")."""
        if height > self.height:
            raise DeltaError("future", f"made under height {height}, here {self.height}")
        if height < self.oldest_height:
            raise DeltaError("stale", f"made under height {height}, here {self.height}")
        return self.epochs[height - self.oldest_height]

    def floor(self, member: bytes) -> int:
        """All sequences of `member` up to this one are settled."""
        return self._floors.get(member, 0)

    def is_settled(self, key: DeltaKey) -> bool:
        """Whether this (member, sequence) can never enter a cut again."""
        return key[1] <= self.floor(key[0]) or key in self.included

    @cached_property
    def included(self) -> frozenset[DeltaKey]:
        """Everything in the recent cuts."""
        return frozenset(key for cut in self.recent for key in cut)

    @cached_property
    def _floors(self) -> dict[bytes, int]:
        return dict(self.floors)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes, equal on every member at one height."""
        return hashlib.sha256(DOMAIN + self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """The one encoding; cuts are grouped by member."""
        pieces = [
            FIXED.pack(
                self.height, self.staleness, len(self.epochs), len(self.recent), len(self.floors)
            )
        ]
        for parameters in self.epochs:
            encoded = parameters.to_bytes()
            pieces += [pack(">I", len(encoded)), encoded]
        pieces += [FLOOR.pack(member, floor) for member, floor in self.floors]
        for cut in self.recent:
            runs = [(member, [s for _, s in keys]) for member, keys in _by_member(cut)]
            pieces.append(pack(">H", len(runs)))
            for member, sequences in runs:
                pieces.append(RUN.pack(member, len(sequences)))
                pieces.append(pack(f">{len(sequences)}Q", *sequences))
        return b"".join(pieces)

    @classmethod
    def from_bytes(cls, data: bytes) -> "SettledState":
        """Raises GossipError("bad-settled" or "bad-parameters")."""
        if len(data) > SETTLED_BYTES_MAX:
            raise GossipError("bad-settled", f"{len(data)} bytes")
        try:
            state = _read(data)
        except error as problem:
            raise GossipError("bad-settled", str(problem)) from None
        if state.to_bytes() != data:
            raise GossipError("bad-settled", "not the one encoding")
        return state


def _read(data: bytes) -> SettledState:
    height, staleness, epoch_count, cut_count, floor_count = FIXED.unpack_from(data)
    at = FIXED.size
    epochs = []
    for _ in range(epoch_count):
        (size,) = unpack_from(">I", data, at)
        epochs.append(EpochParameters.from_bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    floors = tuple(FLOOR.iter_unpack(data[at : at + floor_count * FLOOR.size]))
    at += floor_count * FLOOR.size
    cuts = []
    for _ in range(cut_count):
        (runs,) = unpack_from(">H", data, at)
        at += 2
        cut: list[DeltaKey] = []
        for _ in range(runs):
            member, count = RUN.unpack_from(data, at)
            at += RUN.size
            cut += [(member, sequence) for sequence in unpack_from(f">{count}Q", data, at)]
            at += 8 * count
        cuts.append(tuple(cut))
    return SettledState(height, staleness, tuple(epochs), floors, tuple(cuts))


def _by_member(cut: Cut) -> Iterator[tuple[bytes, Iterator[DeltaKey]]]:
    return groupby(cut, key=lambda key: key[0])


def _ascending(items: Iterable[bytes] | Iterable[DeltaKey]) -> bool:
    return all(first < second for first, second in pairwise(items))  # type: ignore[operator]
