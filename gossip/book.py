"""Which deltas exist: per member, a set of sequence numbers.

    pending  =  seen, admissible, in no committed cut yet
    settled  =  in a cut, or out of time for good (settled.py)

The book holds headers only, no bytes and no arithmetic. Whether a header is admissible depends on
the header and on the committed cuts alone, never on when it came or by what road, so all members
that are at one height judge alike. What may differ between members is which headers they have
seen; that difference is `summary` and `missing`, and gossip makes it go away.

An honest sender numbers its deltas 1, 2, 3 ... and signs one header per number. The first of two
different ones that a book sees stays pending, the second raises EquivocationError; if a committed
cut names the other one, the cut is right and the book follows it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from shoal.gossip.delta import DeltaHeader, DeltaKey, DeltaReference
from shoal.gossip.errors import DeltaError, EquivocationError
from shoal.gossip.parameters import EpochParameters
from shoal.gossip.settled import CUT_MAX, SettledState

# Of one member; an honest one has E per checkpoint, staleness + 1 times.
PENDING_MAX = 1024
BITMAP_BYTES = 128
BITMAP_BITS = 8 * BITMAP_BYTES
# What one summary may make us ask for; the rest is asked for after the next one.
MISSING_MAX = 4096

# member -> (base, bitmap): bit i, least significant first, says that base + 1 + i is held.
# Everything up to base is settled, or too far behind the member's newest to be worth telling.
Summary: TypeAlias = Mapping[bytes, tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Settled:
    """What a committed cut changes for a node.

    included: headers that left pending because they are in the cut; unknown: entries that the
    cut names and this book lacks, to be fetched by id and added to the anchor; expired: headers
    that will never be in a cut, to be taken out of the live anchor. All in order of (member,
    sequence).
    """

    included: tuple[DeltaHeader, ...]
    unknown: tuple[DeltaReference, ...]
    expired: tuple[DeltaHeader, ...]


class DeltaBook:
    """The set of deltas one node knows of, for one mesh."""

    def __init__(self, mesh_id: bytes, settled: SettledState) -> None:
        self.mesh_id = mesh_id
        self.settled = settled
        self._pending: dict[DeltaKey, DeltaHeader] = {}
        self._pending_of: Counter[bytes] = Counter()

    @classmethod
    def restore(
        cls, mesh_id: bytes, settled: SettledState, headers: Iterable[DeltaHeader]
    ) -> "DeltaBook":
        """From storage. Headers that are settled, stale or doubled by now are left out."""
        book = cls(mesh_id, settled)
        for header in headers:
            try:
                book.admit(header)
            except DeltaError:
                continue
        return book

    @property
    def height(self) -> int:
        """The last committed height."""
        return self.settled.height

    def parameters(self, height: int) -> EpochParameters:
        """What deltas made under `height` are worth; raises DeltaError("stale" or "future")."""
        return self.settled.parameters(height)

    def examine(self, header: DeltaHeader) -> EpochParameters:
        """Judge a header by the committed cuts alone; gives the parameters it stands under.

        All members at one height come to the same verdict, so this is the rule for the entries
        of somebody else's cut, too. Raises DeltaError: "wrong-mesh", "future" (made under a
        height that is not committed here yet: keep it and try again), "stale", "not-a-member",
        "replayed".
        """
        if header.mesh_id != self.mesh_id:
            raise DeltaError("wrong-mesh", header.mesh_id.hex()[:16])
        parameters = self.settled.parameters(header.height)
        if header.sender not in parameters.members:
            raise DeltaError("not-a-member", header.sender.hex()[:16])
        if self.settled.is_settled(header.key):
            raise DeltaError("replayed", f"sequence {header.sequence} is settled")
        return parameters

    def admit(self, header: DeltaHeader) -> bool:
        """Make a verified header pending: True if it is new, False if it was pending already.

        Raises what `examine` raises, EquivocationError where another header is pending under its
        number, and DeltaError("too-many-pending").
        """
        self.examine(header)
        first = self._pending.get(header.key)
        if first is not None:
            if first.id != header.id:
                raise EquivocationError(first, header)
            return False
        if self._pending_of[header.sender] >= PENDING_MAX:
            raise DeltaError("too-many-pending", header.sender.hex()[:16])
        self._pending[header.key] = header
        self._pending_of[header.sender] += 1
        return True

    def get(self, key: DeltaKey) -> DeltaHeader | None:
        """The pending header under this number."""
        return self._pending.get(key)

    def wants(self, key: DeltaKey) -> bool:
        """Whether a delta of this number would be news: of a member, not held, not settled."""
        return (
            key not in self._pending
            and any(key[0] in epoch.members for epoch in self.settled.epochs)
            and not self.settled.is_settled(key)
        )

    def pending(self) -> tuple[DeltaHeader, ...]:
        """All pending headers in order of (member, sequence)."""
        return tuple(self._pending[key] for key in sorted(self._pending))

    def pending_of(self, member: bytes) -> int:
        """How many headers of one member are pending."""
        return self._pending_of[member]

    def due(
        self, validators: Collection[bytes], *, quorum: int, rounds_per_checkpoint: int
    ) -> bool:
        """Whether it is time for a cut: `quorum` validators have that many deltas pending.

        So that slow validators, or some that do not train at all, cannot keep the rest from ever
        committing, twice as many of a single member are enough.
        """
        ready = sum(self._pending_of[v] >= rounds_per_checkpoint for v in validators)
        return ready >= quorum or max(self._pending_of.values(), default=0) >= (
            2 * rounds_per_checkpoint
        )

    def cut(self, limit: int = CUT_MAX) -> tuple[DeltaReference, ...]:
        """A candidate for the next height: everything pending, in order of (member, sequence).

        Where that is more than `limit`, every member gets as many as the others, oldest
        first; the rest is for the next cut.
        """
        headers = self.pending()
        limit = min(limit, CUT_MAX)
        if len(headers) > limit:
            kept = sorted(_ranked(headers))[:limit]
            headers = tuple(self._pending[key] for key in sorted(key for _, key in kept))
        return tuple(header.reference for header in headers)

    def lacking(self, entries: Iterable[DeltaReference]) -> tuple[DeltaReference, ...]:
        """Which entries of a proposed cut are not pending here under that very id."""
        return tuple(e for e in entries if not self._holds(e))

    def commit(self, entries: Collection[DeltaReference], parameters: EpochParameters) -> Settled:
        """Settle a committed cut; `parameters` are those committed with it, of its height."""
        settled = self.settled.after((entry.key for entry in entries), parameters)
        unknown = sorted(self.lacking(entries))
        included = [self._remove(e.key) for e in sorted(entries) if self._holds(e)]
        self.settled = settled
        # What is left under a number that the cut gave to another header goes as well.
        expired = [
            self._remove(header.key)
            for header in self.pending()
            if header.height < settled.oldest_height or settled.is_settled(header.key)
        ]
        return Settled(tuple(included), tuple(unknown), tuple(expired))

    def jump(self, settled: SettledState) -> tuple[DeltaHeader, ...]:
        """Take over a certified later state; gives the headers that are not pending any more."""
        assert settled.height >= self.height, "committed cuts are never taken back"
        self.settled = settled
        gone = [
            header.key
            for header in self.pending()
            if not settled.oldest_height <= header.height
            or settled.is_settled(header.key)
            or header.sender not in settled.parameters(header.height).members
        ]
        return tuple(self._remove(key) for key in gone)

    def summary(self) -> dict[bytes, tuple[int, bytes]]:
        """What this node holds or saw included lately, in at most 128 bytes per member."""
        known: dict[bytes, list[int]] = {}
        for member, sequence in sorted(self.settled.included | self._pending.keys()):
            known.setdefault(member, []).append(sequence)
        summary = {}
        for member, sequences in known.items():
            base = max(self.settled.floor(member), sequences[-1] - BITMAP_BITS)
            bits = sum(1 << (sequence - base - 1) for sequence in sequences if sequence > base)
            summary[member] = (base, bits.to_bytes((bits.bit_length() + 7) // 8, "little"))
        return summary

    def missing(self, summary: Summary) -> list[DeltaKey]:
        """What a peer with this summary holds and this book wants, at most 4096 numbers."""
        wanted: list[DeltaKey] = []
        # A summary may name a thousand strangers with a thousand numbers each: no number of theirs
        # is looked at.
        known = frozenset[bytes]().union(*(epoch.members for epoch in self.settled.epochs))
        for member, (base, bitmap) in sorted(summary.items()):
            if member not in known:
                continue
            bits = int.from_bytes(bitmap[:BITMAP_BYTES], "little")
            while bits and len(wanted) < MISSING_MAX:
                lowest = bits & -bits
                key = (member, base + lowest.bit_length())
                if self.wants(key):
                    wanted.append(key)
                bits ^= lowest
        return wanted

    def _holds(self, entry: DeltaReference) -> bool:
        header = self._pending.get(entry.key)
        return header is not None and header.id == entry.delta_id

    def _remove(self, key: DeltaKey) -> DeltaHeader:
        header = self._pending.pop(key)
        self._pending_of[header.sender] -= 1
        return header


def _ranked(headers: Iterable[DeltaHeader]) -> Iterator[tuple[int, DeltaKey]]:
    """(0 for a member's first header, 1 for its second ..., key); `headers` in order of key."""
    for _, group in groupby(headers, key=lambda header: header.sender):
        for rank, header in enumerate(group):
            yield rank, header.key
