"""The shared model as this node knows it: the committed anchor, the live one, what lies between.

    committed(h) = genesis + everything in the cuts 1..h         certified, equal everywhere
    live         = committed(h) + every valid delta held         what the next round starts from

All arithmetic runs on one thread of its own, so the event loop never waits for torch and two
changes of an anchor never meet. One lock orders "a delta is added" against "a cut is committed".
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from shoal.compression.codec import SparseDelta, decode, max_frame_bytes
from shoal.compression.frame import FrameError
from shoal.compression.layout import CHUNK
from shoal.gossip.anchor import Anchor
from shoal.gossip.book import DeltaBook, Settled
from shoal.gossip.delta import Delta, DeltaHeader, DeltaReference
from shoal.gossip.errors import DeltaError, GossipError
from shoal.gossip.parameters import (
    EpochParameters,
    clip_scales,
)
from shoal.gossip.schema import ModelSchema
from shoal.gossip.settled import SettledState
from shoal.node.database import Database, StoredDelta
from shoal.node.identity import verify
from shoal.node.outcome import Coming, Outcome, open_delta, work_out
from shoal.node.parameters import MeshParameters, most_kept_per_chunk

log = structlog.get_logger()
T = TypeVar("T")

# Deltas made under a height that is not committed here yet wait for it, up to so many bytes; what
# does not fit is pulled again later.
WAITING_BYTES_MAX = 64 << 20
# Settled deltas stay on disk for so many heights, for those who are behind.
RETAINED_HEIGHTS = 8
Cut = Sequence[DeltaReference]


class _WorkedOut(NamedTuple):
    key: tuple[bytes, ...]
    basis: Coming | EpochParameters
    outcome: Outcome


class Before(NamedTuple):
    """The committed state that a cut was added to: its deltas are judged by it."""

    anchor: Anchor
    settled: SettledState


class MissingDeltas(Exception):
    """A cut names deltas that are not held here."""

    def __init__(self, missing: list[DeltaReference]) -> None:
        super().__init__(f"{len(missing)} deltas of the cut are not here")
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Unsaid:
    """A delta that expired, with the clip factors that its sender subtracted it with."""

    header: DeltaHeader
    sparse: SparseDelta
    scales: NDArray[np.float64]


class SharedModel:
    """Anchors, parameters and the set of deltas of one mesh."""

    def __init__(
        self,
        *,
        me: bytes,
        mesh_id: bytes,
        mesh: MeshParameters,
        committed: Anchor,
        settled: SettledState,
        database: Database,
    ) -> None:
        self.mesh_id = mesh_id
        # Those of the epoch in force, once somebody knows better than the genesis.
        self.mesh: Callable[[], MeshParameters] = lambda: mesh
        self.committed = committed
        self.live = committed.copy()
        self.book = DeltaBook(mesh_id, settled)
        self._me = me
        self._database = database
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._lock = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._waiting: dict[bytes, Delta] = {}
        # The newest alone: each holds a whole anchor.
        self._worked_out: _WorkedOut | None = None
        # Where the newest cut began; None where its anchor was fetched whole, or nobody will ask.
        self.before: Before | None = None
        # Deltas since the start: added to the live anchor; taken out of it, for no cut took them.
        self.applied = self.late = 0
        # Told of every delta that becomes pending, by whatever way it came.
        self.on_added: Callable[[DeltaHeader], None] = lambda header: None

    @property
    def schema(self) -> ModelSchema:
        """The model's tensors."""
        return self.committed.schema

    @property
    def height(self) -> int:
        """The newest committed height whose anchor is here."""
        return self.book.height

    @property
    def parameters(self) -> EpochParameters:
        """The parameters in force: those of the newest committed height."""
        return self.book.parameters(self.height)

    @property
    def tokens(self) -> int:
        """Tokens that the live anchor has learned from, over all members."""
        return self.parameters.tokens + sum(header.tokens for header in self.book.pending())

    @property
    def rules(self) -> MeshParameters:
        """The mesh parameters for as many members as there are."""
        return self.mesh().worked_out(len(self.parameters.members))

    @property
    def frame_bytes_max(self) -> int:
        """No frame is longer that counts now, or that will once the next height is committed."""
        coming = most_kept_per_chunk(self.mesh())
        kept = max(coming, *(epoch.kept_per_chunk for epoch in self.book.settled.epochs))
        return max_frame_bytes(self.schema.layout, kept)

    async def compute(self, work: Callable[[], T]) -> T:
        """Run `work` on the model's thread, after whatever is queued there."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def wait_until_member(self, member: bytes) -> None:
        """Wait until the parameters in force name `member`: before that its deltas are refused."""
        async with self._changed:
            await self._changed.wait_for(lambda: member in self.parameters.members)

    async def wait_for_change(self) -> None:
        """Wait until a delta was added or a cut committed."""
        async with self._changed:
            await self._changed.wait()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # --- deltas -------------------------------------------------------------------------------

    def parse(self, blob: bytes) -> Delta:
        """Cut a delta's blob apart; raises DeltaError."""
        return Delta.from_bytes(blob, frame_bytes_max=self.frame_bytes_max)

    async def add(self, delta: Delta, *, own: bool = False) -> bool:
        """Check a delta, keep it for good and add it to the live anchor.

        Returns False when it is pending already, or must wait for a height that is not committed
        here. Raises GossipError or FrameError where its sender is at fault.
        """
        header = delta.header
        if header.mesh_id == self.mesh_id and header.height > self.height:
            await self._keep_waiting(delta)
            return False
        opened = await self.compute(lambda: open_delta(delta, self.book, self.schema))
        async with self._lock:
            if not self.book.admit(header):
                return False
            await self._store(delta, own=own)
            await self.compute(lambda: self.live.apply(opened.sparse, opened.increments))
        self.applied += 1
        self.on_added(header)
        await self._notify()
        return True

    async def keep(self, delta: Delta) -> None:
        """Store a signed delta that is not admitted: a rival, or one that somebody's cut names."""
        await self.compute(lambda: delta.require_signature(verify))
        await self._store(delta)

    async def _store(self, delta: Delta, *, own: bool = False) -> None:
        header = delta.header
        blob = delta.to_bytes()
        await self._database.put_delta(
            StoredDelta(header.sender, header.sequence, header.id, header.height, blob), own=own
        )

    async def _keep_waiting(self, delta: Delta) -> None:
        if delta.header.height > self.height + 1 + self.book.settled.staleness:
            raise DeltaError("future", f"made under height {delta.header.height}")
        await self.compute(lambda: delta.require_signature(verify))
        waiting = sum(len(other.frame) for other in self._waiting.values())
        if waiting + len(delta.frame) <= WAITING_BYTES_MAX:
            self._waiting[delta.header.id] = delta

    async def load(self, reference: DeltaReference) -> Delta | None:
        """Return a delta from the disk, or None."""
        blob = await self._database.get_delta(*reference)
        return self._parse_own(blob) if blob is not None else None

    def _parse_own(self, blob: bytes) -> Delta:
        """One that lies here: its epoch may have allowed larger frames than any that counts now."""
        return Delta.from_bytes(blob, frame_bytes_max=max_frame_bytes(self.schema.layout, CHUNK))

    async def restore_pending(self) -> None:
        """After a restart: take up the deltas on disk that no cut has settled."""
        for stored in await self._database.unsettled_deltas():
            try:
                await self.add(self._parse_own(stored.blob))
            except (GossipError, FrameError) as error:
                log.debug("delta.dropped", sequence=stored.sequence, why=error.reason)

    # --- cuts ---------------------------------------------------------------------------------

    async def outcome(self, cut: Cut, basis: Coming | EpochParameters) -> Outcome:
        """Return what `cut` gives as the next height: anchor, root, next parameters.

        The next parameters follow from what is `Coming`; where they are certified already they
        are given instead. Raises MissingDeltas where some of the cut is not here,
        GossipError or FrameError where one of its deltas may not be in it.
        """
        key = (self.book.settled.digest, *(reference.delta_id for reference in cut))
        known = self._worked_out
        # What was attested is worked out already when it comes back certified.
        if known and known.key == key and basis in (known.basis, known.outcome.parameters):
            return known.outcome
        # Taken together, before the first await: a commit may come while this is worked out.
        base, committed = DeltaBook(self.mesh_id, self.book.settled), self.committed
        deltas = []
        missing = []
        for reference in cut:
            delta = await self.load(reference)
            if delta is None:
                missing.append(reference)
            else:
                deltas.append(delta)
        if missing:
            raise MissingDeltas(missing)
        outcome = await self.compute(lambda: work_out(base, committed, deltas, basis))
        self._worked_out = _WorkedOut(key, basis, outcome)
        return outcome

    async def commit(self, cut: Cut, outcome: Outcome) -> list[Unsaid]:
        """Make `outcome` the committed state; returns own deltas that expired by it."""
        async with self._lock:
            asked = self.mesh().evict_harmful
            self.before = Before(self.committed, self.book.settled) if asked else None
            before = {epoch.height: epoch for epoch in self.book.settled.epochs}
            settled = self.book.commit(cut, outcome.parameters)
            return await self._settle(outcome, settled, before)

    async def adopt(self, anchor: Anchor, settled: SettledState) -> None:
        """Jump to a certified later state that was fetched whole."""
        async with self._lock:
            headers = self.book.pending()
            self.book = DeltaBook.restore(self.mesh_id, settled, headers)
            self.committed, self.before = anchor, None
            await self._rebuild_live()
            kept = {header.id for header in self.book.pending()}
            gone = [header.id for header in headers if header.id not in kept]
            await self._database.settle_deltas(gone, self.height, self.height - RETAINED_HEIGHTS)
        await self._take_up_waiting()
        await self._notify()

    async def _settle(
        self, outcome: Outcome, settled: Settled, before: dict[int, EpochParameters]
    ) -> list[Unsaid]:
        self.committed = outcome.anchor
        await self._rebuild_live()
        self.late += len(settled.expired)
        unsaid = []
        for header in settled.expired:
            delta = await self.load(header.reference)
            if header.sender == self._me and delta is not None:
                sparse = await self.compute(
                    lambda frame=delta.frame: decode(frame, self.schema.layout)  # type: ignore[misc]
                )
                scales = clip_scales(before[header.height], sparse, header.steps)
                unsaid.append(Unsaid(header, sparse, scales))
        done = [header.id for header in (*settled.included, *settled.expired)]
        await self._database.settle_deltas(done, self.height, self.height - RETAINED_HEIGHTS)
        return unsaid

    async def after_commit(self) -> None:
        """Take up what waited for this height, and tell whoever waits for a change."""
        await self._take_up_waiting()
        await self._notify()

    async def _rebuild_live(self) -> None:
        deltas = [await self.load(header.reference) for header in self.book.pending()]

        def work() -> Anchor:
            live = self.committed.copy()
            for delta in deltas:
                assert delta is not None, "a pending delta is on the disk"
                opened = open_delta(delta, self.book, self.schema)
                live.apply(opened.sparse, opened.increments)
            return live

        self.live = await self.compute(work)

    async def _take_up_waiting(self) -> None:
        ready = [d for d in self._waiting.values() if d.header.height <= self.height]
        for delta in ready:
            del self._waiting[delta.header.id]
            try:
                await self.add(delta)
            except (GossipError, FrameError) as error:
                log.info("delta.refused", why=str(error))
