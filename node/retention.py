"""What a node keeps of the past: a pure plan, from the agreed members and what lies on this disk.

The newest checkpoints lie whole on every disk, because they are what joiners ask for. Of the older
ones every tenth is kept in pieces: each chunk, and the log of the cut's deltas, by the r members
that rank first for it (gossip/placement.py). Nothing here asks a clock or a disk.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shoal.gossip.placement import ranking

# Stands for a height's delta log where a chunk's address would stand.
DELTA_LOG = b""
DELTA_LOG_DOMAIN = b"SHOAL-DELTA-LOG\x01"


class Piece(NamedTuple):
    """What is placed as one: a chunk by its address, or a height's delta log (DELTA_LOG)."""

    height: int
    address: bytes

    @property
    def key(self) -> bytes:
        """What it is placed by. Equal chunks of two heights are kept by the same members."""
        return self.address or DELTA_LOG_DOMAIN + self.height.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of the past to keep; all members should say the same but for `pinned`.

    keep_whole: newest checkpoints kept whole; keep_every: of the older ones, multiples of this are
    kept in pieces; archived_max: at most so many of them; pinned: heights that this node keeps
    whole piece by piece, whoever else does, on top of `archived_max`.
    """

    keep_whole: int = 2
    keep_every: int = 10
    archived_max: int = 16
    pinned: frozenset[int] = frozenset()

    def whole_from(self, newest: int) -> int:
        """The lowest height that is kept whole when `newest` is committed."""
        return max(1, newest - self.keep_whole + 1)

    def archived(self, newest: int) -> list[int]:
        """The heights kept in pieces when `newest` is committed, ascending."""
        below = self.whole_from(newest)
        pinned = (height for height in self.pinned if 0 < height < below)
        return sorted({*self.shared(newest), *pinned})

    def shared(self, newest: int) -> list[int]:
        """Those that all members keep between them, ascending: all but what is pinned here."""
        last = (self.whole_from(newest) - 1) // self.keep_every * self.keep_every
        return sorted(range(last, 0, -self.keep_every)[: self.archived_max])


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about the pieces of old heights.

    keep: is here and stays; drop: is here and may go at once, its height is retained no more;
    want: should be here and is not; hand_over: is here and belongs elsewhere, with the members
    that rank above this one for it, best first: it may go when `handed_over` says so.
    """

    keep: frozenset[Piece]
    drop: frozenset[Piece]
    want: frozenset[Piece]
    hand_over: Mapping[Piece, tuple[bytes, ...]]


def plan_holdings(
    me: bytes,
    members: Collection[bytes],
    r: int,
    heights: Collection[int],
    manifests: Mapping[int, Sequence[bytes]],
    held: Collection[Piece],
    pinned: Collection[int] = (),
) -> Plan:
    """Sort every piece that is held here or of a retained height.

    members: 32-byte ids that the ledger has now; r: copies of each piece; heights: those that are
    retained in pieces; manifests: chunk addresses of each of them that is known here; held: what
    lies on this disk; pinned: heights of which this node keeps everything.
    """
    here = frozenset(held)
    retained = frozenset(heights)
    everything = {
        Piece(height, address)
        for height in retained & manifests.keys()
        for address in (*manifests[height], DELTA_LOG)
    }
    keep: set[Piece] = set()
    want: set[Piece] = set()
    hand_over: dict[Piece, tuple[bytes, ...]] = {}
    for piece in everything | {piece for piece in here if piece.height in retained}:
        ranked = ranking(piece.key, members)
        above = tuple(ranked[: ranked.index(me)] if me in ranked else ranked)
        mine = piece.height in pinned or (me in ranked and len(above) < r)
        if mine:
            (keep if piece in here else want).add(piece)
        elif piece in here:
            hand_over[piece] = above
    drop = frozenset(piece for piece in here if piece.height not in retained)
    return Plan(frozenset(keep), drop, frozenset(want), hand_over)


def handed_over(above: Sequence[bytes], confirmed: Collection[bytes], r: int) -> bool:
    """Whether a piece may go: r members that rank above say that they hold it.

    Only members above count, so the r best-ranked of those who have a piece never drop it, however
    many members look at each other at the same moment and however the list of members changes.
    """
    return len(set(above) & set(confirmed)) >= r
