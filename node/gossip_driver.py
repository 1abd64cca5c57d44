"""Drives the relay: which deltas to announce, which to pull and from whom; carries that out.

The relay decides (gossip/relay.py); this file moves bytes. What arrives is checked in the order
of cost: size, name, hash, membership, signature, then decompression on the model's thread; it is
durable before it is announced further.
"""

import asyncio
import random
from collections.abc import Callable, Sequence

import structlog

from shoal.compression.frame import FrameError
from shoal.gossip.delta import BLOB_OVERHEAD_BYTES, Delta, DeltaHeader, DeltaReference
from shoal.gossip.errors import EquivocationError, GossipError
from shoal.gossip.relay import Relay, RelaySettings
from shoal.gossip.relay_events import (
    Announce,
    Announced,
    Effect,
    Event,
    Fetch,
    FetchFailed,
    Held,
    LinkDown,
    LinkUp,
    Refused,
    SendSummary,
    SummaryReceived,
    Tick,
    Unwanted,
    Wanted,
)
from shoal.node import bulk
from shoal.node.config import GossipSettings
from shoal.node.errors import PeerError
from shoal.node.identity import short
from shoal.node.links import Links
from shoal.node.meters import Meters
from shoal.node.shared_model import SharedModel
from shoal.node.statements import delta_statement, eviction
from shoal.node.wire import Announced as AnnouncedMessage
from shoal.node.wire import SummaryMessage

log = structlog.get_logger()

TICK_S = 0.25
# The sender is honest, the delta is of no use here: nothing to hold against whoever relayed it.
USELESS = frozenset({"stale", "replayed", "future", "too-many-pending"})


class GossipDriver:
    """The relay's clock, its randomness and its hands."""

    def __init__(
        self,
        *,
        model: SharedModel,
        links: Links,
        meters: Meters,
        settings: RelaySettings,
        on_evidence: Callable[[bytes], None],
    ) -> None:
        """`on_evidence` is given the operation that puts out a member that lied."""
        self._on_evidence = on_evidence
        self._model = model
        self._links = links
        self._meters = meters
        self._relay = Relay(model.book, settings, random.Random())
        model.on_added = self._held
        self._fetches: set[asyncio.Task[None]] = set()
        self._closed = False
        # Deltas that a cut names and that are waited for, by id.
        self._awaited: dict[bytes, asyncio.Event] = {}

    @property
    def missing(self) -> int:
        """Deltas that are known to exist and not held."""
        return self._relay.missing

    @property
    def fetching(self) -> int:
        """Deltas that are being pulled now."""
        return len(self._fetches)

    async def run(self) -> None:
        """Tick for ever."""
        while True:
            self._step(Tick())
            await asyncio.sleep(TICK_S)

    async def close(self) -> None:
        """End every fetch, and begin no other; then nothing here wants the database any more."""
        self._closed = True
        fetches = list(self._fetches)
        for task in fetches:
            task.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    def link_up(self, peer: bytes) -> None:
        """A neighbour can be reached."""
        self._step(LinkUp(peer))

    def link_down(self, peer: bytes) -> None:
        """A neighbour cannot be reached any more."""
        self._step(LinkDown(peer))

    def ask_others(self, peer: bytes) -> None:
        """A neighbour does not answer: what it was asked for is asked of others now.

        Its link may still be up, and what it says all the same is heard.
        """
        self._step(LinkDown(peer))
        if peer in self._links.connected:
            self._step(LinkUp(peer))

    def received(self, peer: bytes, message: AnnouncedMessage | SummaryMessage) -> None:
        """A neighbour told what it holds."""
        if isinstance(message, AnnouncedMessage):
            items = tuple(DeltaReference(*reference) for reference in message.deltas)
            self._step(Announced(peer, items))
        else:
            self._links.record(peer).committed_height = message.committed_height
            self._step(SummaryReceived(peer, message.members))

    def _held(self, header: DeltaHeader) -> None:
        awaited = self._awaited.get(header.id)
        if awaited is not None:
            awaited.set()
        self._step(Held(header))

    async def obtain(
        self, references: Sequence[DeltaReference], peer: bytes, timeout_s: float
    ) -> bool:
        """Pull what a cut names, from its proposer first; whether all of it came in time."""
        events = [
            self._awaited.setdefault(reference.delta_id, asyncio.Event())
            for reference in references
        ]
        self._step(Wanted(tuple(references), peer))
        try:
            async with asyncio.timeout(timeout_s):
                for event in events:
                    await event.wait()
        except TimeoutError:
            return False
        finally:
            self._step(Unwanted(tuple(reference.key for reference in references)))
            for reference in references:
                self._awaited.pop(reference.delta_id, None)
        return True

    def _step(self, event: Event) -> None:
        for effect in self._relay.step(asyncio.get_running_loop().time(), event):
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Announce(peer, items):
                self._links.send(peer, AnnouncedMessage(items))
            case SendSummary(peer):
                summary = SummaryMessage(self._model.height, self._model.book.summary())
                self._links.send(peer, summary)
            case Fetch() if self._closed:
                pass
            case Fetch(peer, items):
                for item in items:
                    task = asyncio.create_task(self._fetch(peer, item))
                    self._fetches.add(task)
                    task.add_done_callback(self._fetches.discard)

    async def _fetch(self, peer: bytes, item: DeltaReference) -> None:
        try:
            delta = await self._download(peer, item)
            await self._take(delta, item)
        except bulk.FetchFailed as error:
            log.debug("fetch.failed", peer=short(peer), why=str(error))
            self._step(FetchFailed(peer, item.key))
        except (PeerError, GossipError, FrameError) as error:
            self._meters.rejected[error.reason] += 1
            if error.reason in USELESS:
                self._step(Refused(item.key))
            else:
                log.warning("delta.refused", peer=short(peer), why=str(error))
                if not isinstance(error, FrameError):
                    # A relay may pass on a frame that it could not decode itself.
                    self._links.blame(peer, error.reason)
                self._step(FetchFailed(peer, item.key))

    async def _download(self, peer: bytes, item: DeltaReference) -> Delta:
        limit_bytes = BLOB_OVERHEAD_BYTES + self._model.frame_bytes_max
        blob = await bulk.fetch_delta(
            self._links.stub(peer),
            self._model.mesh_id,
            item,
            limit_bytes=limit_bytes,
        )
        self._links.record(peer).received_bytes += len(blob)
        self._meters.received_bytes["bulk"] += len(blob)
        delta = await self._model.compute(lambda: self._model.parse(blob))
        if delta.header.key != item.key or item.delta_id not in (b"", delta.header.id):
            raise PeerError("wrong-delta", "it is not the one that was asked for")
        return delta

    async def _convict(self, known: DeltaHeader, rival: Delta) -> None:
        """Two deltas of one number: both headers are signed, so they are evidence for anybody."""
        first = await self._model.load(known.reference)
        if first is not None:
            one, other = delta_statement(first), delta_statement(rival)
            self._on_evidence(eviction(known.sender, one, other))

    async def _take(self, delta: Delta, item: DeltaReference) -> None:
        """Hold a delta; one that a cut names is kept even where another has its number."""
        header = delta.header
        try:
            if await self._model.add(delta):
                return
        except EquivocationError as error:
            self._meters.rejected["equivocation"] += 1
            log.warning("evidence", kind="two-deltas", signer=short(header.sender), why=str(error))
            await self._model.keep(delta)
            await self._convict(error.first, delta)
            self._held(header)
            return
        except GossipError as error:
            if error.reason not in USELESS or header.id not in self._awaited:
                raise
            # Settled here, but somebody's cut names it: stored below, judged by the check.
            await self._model.keep(delta)
            self._held(header)
            return
        if self._model.book.get(header.key) is None:
            # It waits for a height that is not committed here yet.
            self._step(Refused(item.key))
        else:
            self._held(header)


def relay_settings(gossip: GossipSettings) -> RelaySettings:
    """Return what the operator set, as the relay wants to know it."""
    return RelaySettings(
        summary_interval_s=gossip.summary_interval_s,
        fetch_timeout_s=gossip.fetch_timeout_s,
        fetch_parallel=gossip.fetch_parallel,
    )
