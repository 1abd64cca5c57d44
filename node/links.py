"""Links to neighbours: one long-lived bidirectional stream each, authenticated by both keys.

Either side may dial. The side with the smaller id dials at once and the other only after a
moment, so that two nodes that start together normally end with one stream; a second one does no
harm, because everything that travels here may arrive twice. Of what waits, consensus is sent
before gossip (lanes.py).

TLS has proved who the other side is before the first frame (trust.py, gate.py), and the handshake
of a link must name the same node: a connection speaks for one member only. A link ends when its
peer is no member any more, and when the leaf that it was made with is too old.
"""

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
import structlog

from shoal.node.boots import PROOF_METADATA, Boots
from shoal.node.certificates import Presented
from shoal.node.channels import Channels
from shoal.node.conduct import Conduct
from shoal.node.errors import PeerError
from shoal.node.identity import Identity, link_proof_bytes, short, verify
from shoal.node.lanes import Lanes
from shoal.node.meters import Meters
from shoal.node.peer_record import PeerRecord
from shoal.node.screen import sound
from shoal.node.statements import Boot
from shoal.node.trust import Trust
from shoal.node.wire import (
    PROTOCOL_VERSION,
    Frame,
    Hello,
    LinkMessage,
    Ping,
    Pong,
    Proof,
    kind_of,
    make_frame,
    parse_frame,
)

if TYPE_CHECKING:
    from shoal.proto.mesh_pb2_grpc import MeshAsyncStub

log = structlog.get_logger()

M = TypeVar("M", Hello, Proof)

HANDSHAKE_TIMEOUT_S = 5.0
# A link that is silent for so long is asked, and any link once in a while, for its round trip.
PING_INTERVAL_S = 2.0
MEASURE_INTERVAL_S = 20.0
SILENCE_MAX_S = 12.0
BACKOFF_S = (0.1, 5.0)
POLITE_DELAY_S = 1.0
# Of one peer; two are normal where both have dialled.
LINKS_MAX = 4


class Stream(Protocol):
    """Either end of a gRPC stream of frames: a client's call, or a servicer's context."""

    async def read(self) -> object:
        """Return the next Frame, or grpc.aio.EOF at the end."""

    async def write(self, frame: Frame, /) -> None:
        """Send a frame; waits while the other side does not read."""


@dataclass
class _Link:
    peer: bytes
    stream: Stream
    # When the leaf that this link rests on must be replaced, in seconds since 1970.
    good_until: float
    # Done when the link has to end, with the reason where the peer is to be told one.
    cut: asyncio.Future[str] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    lanes: Lanes = field(default_factory=Lanes)
    heard_at: float = 0.0


class Links:
    """All streams of this node."""

    def __init__(
        self,
        *,
        identity: Identity,
        mesh_id: bytes,
        address: str,
        join_address: str = "",
        meters: Meters,
        boot: int,
        trust: Trust,
        on_up: Callable[[bytes], None],
        on_down: Callable[[bytes], None],
        on_message: Callable[[bytes, LinkMessage], None],
        on_evidence: Callable[[bytes], None],
    ) -> None:
        """`boot` counts the starts of this key; `on_evidence` takes an operation that evicts.

        address, join_address: where others dial this node, as members and as newcomers.
        """
        self._identity = identity
        self._mesh_id = mesh_id
        self._address = address
        self._join_address = join_address
        self._meters = meters
        self.trust = trust
        self._on_up = on_up
        self._on_down = on_down
        self._on_message = on_message
        self._boots = Boots(identity, mesh_id, boot, on_evidence)
        self._links: dict[bytes, list[_Link]] = {}
        self._conduct = Conduct()
        self._channels = Channels(trust)
        trust.watchers.append(self.refresh)
        self._dialers: dict[tuple[str, bytes], asyncio.Task[None]] = {}
        self._hurry = asyncio.Event()
        self.peers: dict[bytes, PeerRecord] = {}

    @property
    def connected(self) -> list[bytes]:
        """The neighbours that have a link now, in order."""
        return sorted(self._links)

    @property
    def rival(self) -> Boot | None:
        """Another process that runs with this node's key, where somebody has proved it."""
        return self._boots.rival

    def record(self, peer: bytes) -> PeerRecord:
        """Return what is known about `peer`."""
        return self.peers.setdefault(peer, PeerRecord())

    def stub(self, peer: bytes, address: str = "") -> "MeshAsyncStub":
        """Return a client for `peer`, on its long-lived channel; "" is where it was dialled."""
        return self._channels.stub(peer, address or self.record(peer).address)

    def send(self, peer: bytes, message: LinkMessage) -> bool:
        """Queue `message` for `peer`; False where there is no link."""
        links = self._links.get(peer)
        if not links:
            return False
        links[0].lanes.put(message)
        return True

    def send_all(self, peers: Iterable[bytes], message: LinkMessage) -> None:
        """Queue `message` for each of `peers` that has a link."""
        for peer in peers:
            self.send(peer, message)

    def dial(self, targets: Mapping[str, bytes]) -> None:
        """Keep links to these addresses, with the id that must answer there, and to no others."""
        wanted = set(targets.items())
        for target in set(self._dialers) - wanted:
            self._dialers.pop(target).cancel()
        for address, expected in wanted - set(self._dialers):
            self.record(expected).address = address
            self._dialers[address, expected] = asyncio.create_task(
                self._dial_forever(address, expected), name=f"dial {address}"
            )

    def hurry(self) -> None:
        """There is reason to think that those who refused will not any more: dial again soon."""
        self._hurry.set()
        self._hurry = asyncio.Event()

    def refresh(self) -> None:
        """End the links that must not go on: of those who are out, and those on old leaves."""
        now, trusted = self.trust.now(), self.trust.trusted
        for peer, links in self._links.items():
            for link in links:
                if not link.cut.done() and (peer not in trusted or now >= link.good_until):
                    log.info("link.cut", peer=short(peer), member=peer in trusted)
                    link.cut.set_result("" if peer in trusted else "not-a-member")

    async def close(self) -> None:
        """Stop dialling and close every channel."""
        for task in self._dialers.values():
            task.cancel()
        await asyncio.gather(*self._dialers.values(), return_exceptions=True)
        self._dialers.clear()
        await self._channels.close()

    async def _dial_forever(self, address: str, peer: bytes) -> None:
        backoff_s = BACKOFF_S[0]
        if self._identity.node_id > peer:
            await asyncio.sleep(POLITE_DELAY_S)
        while True:
            if peer not in self._links and await self._dial_once(address, peer):
                backoff_s = BACKOFF_S[0]
            try:
                await asyncio.wait_for(self._hurry.wait(), backoff_s * random.uniform(0.8, 1.2))
                backoff_s = BACKOFF_S[0]
                await asyncio.sleep(backoff_s)
            except TimeoutError:
                backoff_s = min(backoff_s * 1.6, BACKOFF_S[1])

    async def _dial_once(self, address: str, peer: bytes) -> bool:
        """Hold one dialled link until it ends; returns whether it came about."""
        reached = False
        try:
            # Our leaf is replaced before it has expired, and then so are the links made with it.
            good_until = self.trust.leaf.rotate_at
            call = self.stub(peer, address).Link()
            try:
                await self._handshake(call, peer)
                reached = True
                self.record(peer).address = address
                await self._hold(_Link(peer, call, good_until))
            finally:
                call.cancel()
        except grpc.aio.AioRpcError as error:
            for key, value in error.trailing_metadata() or ():
                if key == PROOF_METADATA and isinstance(value, bytes):
                    self._boots.shown(value)
            self._note_failure(peer, f"{error.code().name}: {error.details()}")
        except PeerError as error:
            self._meters.rejected[error.reason] += 1
            self._note_failure(peer, str(error))
        except TimeoutError:
            self._note_failure(peer, "no answer in time")
        except asyncio.InvalidStateError as error:
            self._note_failure(peer, f"the stream ended: {error}")
        except asyncio.CancelledError:
            # Closing a channel cancels its calls; that is not the end of this dialler.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._note_failure(peer, "the connection was closed here")
        return reached

    def _note_failure(self, peer: bytes, why: str) -> None:
        record = self.record(peer)
        if record.last_error != why:
            log.info("link.failed", peer=short(peer), why=why)
        record.last_error = why

    def blame(self, peer: bytes, reason: str) -> None:
        """A neighbour sent what was refused for this reason; too much of it ends its links."""
        if self._conduct.strike(peer, reason, asyncio.get_running_loop().time()):
            log.warning("peer.cut-off", peer=short(peer), why=reason)

    async def serve(
        self, stream: Stream, caller: Presented, proved: Callable[[], None] = lambda: None
    ) -> None:
        """Hold a link that a neighbour dialled, until it ends; raises PeerError to refuse it.

        caller: whose leaf TLS was made with; proved: called once the handshake is done.
        """
        await self._handshake(stream, caller.node_id)
        if len(self._links.get(caller.node_id, ())) >= LINKS_MAX:
            raise PeerError("too-many-links", short(caller.node_id))
        proved()
        await self._hold(_Link(caller.node_id, stream, caller.not_after))

    async def _handshake(self, stream: Stream, expected: bytes) -> None:
        """Prove both identities to each other, where the other side has to be `expected`."""
        nonce = secrets.token_bytes(32)
        mine = Hello(
            PROTOCOL_VERSION,
            self._mesh_id,
            self._identity.node_id,
            nonce,
            self._address,
            self._join_address,
        )
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await stream.write(make_frame(mine))
            theirs = _expect(Hello, await stream.read())
            if theirs.protocol != PROTOCOL_VERSION:
                raise PeerError("wrong-protocol", f"version {theirs.protocol}")
            if theirs.mesh_id != self._mesh_id:
                raise PeerError("wrong-mesh", theirs.mesh_id.hex()[:16])
            if theirs.node_id == self._identity.node_id:
                raise PeerError("own-key", "another process uses this node's key, or a loop")
            if theirs.node_id != expected:
                proved = f"TLS proved {short(expected)}, not {short(theirs.node_id)}"
                raise PeerError("wrong-identity", proved)
            if not self.trust.admits(theirs.node_id):
                raise PeerError("not-a-member", short(theirs.node_id))
            self._conduct.require_welcome(theirs.node_id, asyncio.get_running_loop().time())
            signed = link_proof_bytes(
                self._mesh_id, self._identity.node_id, theirs.node_id, theirs.nonce
            )
            await stream.write(make_frame(Proof(self._identity.sign(signed), self._boots.own)))
            proof = _expect(Proof, await stream.read())
        claim = link_proof_bytes(self._mesh_id, theirs.node_id, self._identity.node_id, nonce)
        if not verify(theirs.node_id, claim, proof.signature):
            raise PeerError("bad-signature", "the proof of a link")
        self._boots.check(theirs.node_id, proof.boot)
        record = self.record(theirs.node_id)
        record.join_address = theirs.join_address
        record.address = record.address or theirs.address

    async def _hold(self, link: _Link) -> None:
        loop = asyncio.get_running_loop()
        link.heard_at = loop.time()
        self._links.setdefault(link.peer, []).append(link)
        record = self.record(link.peer)
        record.state, record.last_error = "connected", ""
        if len(self._links[link.peer]) == 1:
            log.info("link.up", peer=short(link.peer))
            self._on_up(link.peer)
        tasks = [
            asyncio.create_task(work, name=f"link {short(link.peer)}")
            for work in (self._read(link), self._write(link), self._watch(link))
        ]
        try:
            ends: list[asyncio.Future[Any]] = [*tasks, link.cut]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if link.cut.done() and link.cut.result():
                raise PeerError(link.cut.result(), f"{short(link.peer)} is out")
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            self._drop(link)
            # A cancellation that comes in here goes on; swallowed, it would leave a dialler alive.
            await asyncio.gather(*tasks, return_exceptions=True)

    def _drop(self, link: _Link) -> None:
        links = self._links[link.peer]
        links.remove(link)
        if not links:
            del self._links[link.peer]
            self.record(link.peer).state = "unreachable"
            log.info("link.down", peer=short(link.peer))
            self._on_down(link.peer)

    async def _read(self, link: _Link) -> None:
        record = self.record(link.peer)
        loop = asyncio.get_running_loop()
        while isinstance(read := await link.stream.read(), Frame | PeerError):
            link.heard_at = loop.time()
            try:
                frame = sound(read)
                size = frame.ByteSize()
                record.received_bytes += size
                self._meters.received_bytes[kind_of(frame)] += size
                message = parse_frame(frame)
                wait_s = self._conduct.spend(link.peer, message, size, link.heard_at)
                if isinstance(message, Ping):
                    link.lanes.put(Pong(message.stamp))
                elif isinstance(message, Pong):
                    record.round_trip_ms = max(0.0, (_now_us() - message.stamp) / 1000)
                else:
                    self._on_message(link.peer, message)
            except PeerError as error:
                self._meters.rejected[error.reason] += 1
                self.blame(link.peer, error.reason)
                self._conduct.require_welcome(link.peer, link.heard_at)
            else:
                if wait_s > 0:
                    await asyncio.sleep(wait_s)

    async def _write(self, link: _Link) -> None:
        record = self.record(link.peer)
        while True:
            frame = await link.lanes.take()
            await link.stream.write(frame)
            size = frame.ByteSize()
            record.sent_bytes += size
            self._meters.sent_bytes[kind_of(frame)] += size

    async def _watch(self, link: _Link) -> None:
        loop = asyncio.get_running_loop()
        asked_at = -MEASURE_INTERVAL_S
        while (silence_s := (now := loop.time()) - link.heard_at) < SILENCE_MAX_S:
            if silence_s >= PING_INTERVAL_S or now - asked_at >= MEASURE_INTERVAL_S:
                link.lanes.put(Ping(_now_us()))
                asked_at = now
            await asyncio.sleep(PING_INTERVAL_S)
        raise PeerError("silent", f"nothing heard for {SILENCE_MAX_S:.0f} s")


def _now_us() -> int:
    # Not the loop's clock: uvloop's counts whole milliseconds, longer than a trip over loopback.
    return time.monotonic_ns() // 1000


def _expect(kind: type[M], read: object) -> M:
    if not isinstance(read, Frame | PeerError):
        raise PeerError("handshake", "the other side closed the stream")
    message = parse_frame(sound(read))
    if not isinstance(message, kind):
        raise PeerError("handshake", f"{type(message).__name__} where {kind.__name__} was due")
    return message
