"""Links to neighbours: one long-lived bidirectional stream each, authenticated by both keys.

Either side may dial. The side with the smaller id dials at once and the other only after a
moment, so that two nodes that start together normally end with one stream; a second one does no
harm, because everything that travels here may arrive twice.

Of what waits to be sent, consensus goes before gossip (lanes.py).
"""

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc
import structlog

from shoal.node.conduct import Conduct
from shoal.node.errors import PeerError
from shoal.node.identity import Identity, link_proof_bytes, short, verify
from shoal.node.lanes import Lanes
from shoal.node.meters import Meters
from shoal.node.screen import sound
from shoal.node.statements import NONCE_BYTES, Boot, eviction, parse_boot
from shoal.node.strict import strict_stub
from shoal.node.wire import (
    MESSAGE_BYTES_MAX,
    PROTOCOL_VERSION,
    Frame,
    Hello,
    LinkMessage,
    Ping,
    Pong,
    Proof,
    make_frame,
    parse_frame,
)

if TYPE_CHECKING:
    from shoal.proto.mesh_pb2_grpc import MeshAsyncStub

log = structlog.get_logger()

M = TypeVar("M", Hello, Proof)

HANDSHAKE_TIMEOUT_S = 5.0
PING_INTERVAL_S = 2.0
SILENCE_MAX_S = 12.0
BACKOFF_S = (0.1, 5.0)
POLITE_DELAY_S = 1.0
# Of one peer; two are normal where both have dialled.
LINKS_MAX = 4

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class Stream(Protocol):
    """Either end of a gRPC stream of frames: a client's call, or a servicer's context."""

    async def read(self) -> object:
        """Return the next Frame, or grpc.aio.EOF at the end."""

    async def write(self, frame: Frame, /) -> None:
        """Send a frame; waits while the other side does not read."""


@dataclass
class PeerRecord:
    """What is known about one member as a neighbour; it outlives the links."""

    address: str = ""
    state: str = "unreachable"
    round_trip_ms: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    last_error: str = ""
    committed_height: int = 0


@dataclass
class _Link:
    peer: bytes
    stream: Stream
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
        meters: Meters,
        boot: int,
        is_member: Callable[[bytes], bool],
        on_up: Callable[[bytes], None],
        on_down: Callable[[bytes], None],
        on_message: Callable[[bytes, LinkMessage], None],
        on_evidence: Callable[[bytes], None],
    ) -> None:
        """`boot` counts the starts of this key; `on_evidence` takes an operation that evicts."""
        self._identity = identity
        self._mesh_id = mesh_id
        self._address = address
        self._meters = meters
        self._is_member = is_member
        self._on_up = on_up
        self._on_down = on_down
        self._on_message = on_message
        self._on_evidence = on_evidence
        mine = Boot(identity.node_id, boot, secrets.token_bytes(NONCE_BYTES))
        self._boot = mine.statement(identity.sign(mine.signed_bytes(mesh_id)))
        # The newest boot that each peer has shown us, with its signed statement.
        self._boots: dict[bytes, tuple[Boot, bytes]] = {}
        self._links: dict[bytes, list[_Link]] = {}
        self._conduct = Conduct()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._dialers: dict[str, asyncio.Task[None]] = {}
        self.peers: dict[bytes, PeerRecord] = {}

    @property
    def connected(self) -> list[bytes]:
        """The neighbours that have a link now, in order."""
        return sorted(self._links)

    def record(self, peer: bytes) -> PeerRecord:
        """Return what is known about `peer`."""
        return self.peers.setdefault(peer, PeerRecord())

    def stub(self, address: str) -> "MeshAsyncStub":
        """Return a client for the node at `address`, on its long-lived channel."""
        channel = self._channels.get(address)
        if channel is None:
            channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
            self._channels[address] = channel
        return strict_stub(channel)

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

    def dial(self, targets: dict[str, bytes | None]) -> None:
        """Keep links to these addresses (with the id expected there), and stop dialling others."""
        for address in set(self._dialers) - set(targets):
            self._dialers.pop(address).cancel()
        for address, expected in targets.items():
            if expected is not None:
                self.record(expected).address = address
            if address not in self._dialers:
                self._dialers[address] = asyncio.create_task(
                    self._dial_forever(address, expected), name=f"dial {address}"
                )

    async def close(self) -> None:
        """Stop dialling and close every channel."""
        for task in self._dialers.values():
            task.cancel()
        await asyncio.gather(*self._dialers.values(), return_exceptions=True)
        self._dialers.clear()
        for channel in self._channels.values():
            await channel.close()

    async def _dial_forever(self, address: str, expected: bytes | None) -> None:
        backoff_s = BACKOFF_S[0]
        if expected is not None and self._identity.node_id > expected:
            await asyncio.sleep(POLITE_DELAY_S)
        while True:
            if expected is None or expected not in self._links:
                peer = await self._dial_once(address, expected)
                backoff_s = BACKOFF_S[0] if peer is not None else backoff_s
                expected = expected or peer
            await asyncio.sleep(backoff_s * random.uniform(0.8, 1.2))
            backoff_s = min(backoff_s * 1.6, BACKOFF_S[1])

    async def _dial_once(self, address: str, expected: bytes | None) -> bytes | None:
        """Hold one dialled link until it ends; returns who was there, None when nobody was."""
        reached = None
        try:
            call = self.stub(address).Link()
            try:
                reached = await self._handshake(call, expected)
                self.record(reached).address = address
                await self._hold(_Link(reached, call))
            finally:
                call.cancel()
        except grpc.aio.AioRpcError as error:
            self._note_failure(expected or reached, f"{error.code().name}: {error.details()}")
        except PeerError as error:
            self._meters.rejected[error.reason] += 1
            self._note_failure(expected or reached, str(error))
        except TimeoutError:
            self._note_failure(expected or reached, "no answer in time")
        except asyncio.InvalidStateError as error:
            self._note_failure(expected or reached, f"the stream ended: {error}")
        return reached

    def _note_failure(self, peer: bytes | None, why: str) -> None:
        if peer is not None:
            record = self.record(peer)
            if record.last_error != why:
                log.info("link.failed", peer=short(peer), why=why)
            record.last_error = why

    def blame(self, peer: bytes, reason: str) -> None:
        """A neighbour sent what was refused for this reason; too much of it ends its links."""
        if self._conduct.strike(peer, reason, asyncio.get_running_loop().time()):
            log.warning("peer.cut-off", peer=short(peer), why=reason)

    async def serve(self, stream: Stream, proved: Callable[[], None] = lambda: None) -> None:
        """Hold a link that a neighbour dialled, until it ends; raises PeerError to refuse it.

        proved: called once it is known who that is.
        """
        peer = await self._handshake(stream, None)
        if len(self._links.get(peer, ())) >= LINKS_MAX:
            raise PeerError("too-many-links", short(peer))
        proved()
        await self._hold(_Link(peer, stream))

    async def _handshake(self, stream: Stream, expected: bytes | None) -> bytes:
        """Prove both identities to each other; returns the other side's."""
        nonce = secrets.token_bytes(32)
        mine = Hello(PROTOCOL_VERSION, self._mesh_id, self._identity.node_id, nonce, self._address)
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await stream.write(make_frame(mine))
            theirs = _expect(Hello, await stream.read())
            if theirs.protocol != PROTOCOL_VERSION:
                raise PeerError("wrong-protocol", f"version {theirs.protocol}")
            if theirs.mesh_id != self._mesh_id:
                raise PeerError("wrong-mesh", theirs.mesh_id.hex()[:16])
            if theirs.node_id == self._identity.node_id:
                raise PeerError("own-key", "another process uses this node's key, or a loop")
            if expected is not None and theirs.node_id != expected:
                raise PeerError("wrong-identity", f"{short(theirs.node_id)} answers there")
            if not self._is_member(theirs.node_id):
                raise PeerError("not-a-member", short(theirs.node_id))
            self._conduct.require_welcome(theirs.node_id, asyncio.get_running_loop().time())
            signed = link_proof_bytes(
                self._mesh_id, self._identity.node_id, theirs.node_id, theirs.nonce
            )
            await stream.write(make_frame(Proof(self._identity.sign(signed), self._boot)))
            proof = _expect(Proof, await stream.read())
        claim = link_proof_bytes(self._mesh_id, theirs.node_id, self._identity.node_id, nonce)
        if not verify(theirs.node_id, claim, proof.signature):
            raise PeerError("bad-signature", "the proof of a link")
        self._check_boot(theirs.node_id, proof.boot)
        if theirs.address and not self.record(theirs.node_id).address:
            self.record(theirs.node_id).address = theirs.address
        return theirs.node_id

    def _check_boot(self, peer: bytes, statement: bytes) -> None:
        """Raise PeerError for a process that another one with the same key has replaced.

        A later boot replaces an earlier one. Two nonces for one boot are two processes that run
        with one key: both statements are signed, so they are evidence.
        """
        boot = parse_boot(statement, self._mesh_id)
        if boot is None or boot.node_id != peer:
            raise PeerError("bad-signature", "the boot of a link")
        known = self._boots.get(peer)
        if known is not None and boot.count < known[0].count:
            raise PeerError("stale-boot", f"{short(peer)} has started again since")
        if known is not None and boot.count == known[0].count and boot.nonce != known[0].nonce:
            log.warning("evidence", kind="two-processes", signer=short(peer))
            self._on_evidence(eviction(peer, known[1], statement))
            raise PeerError("two-processes", f"two processes use the key of {short(peer)}")
        self._boots[peer] = (boot, statement)

    async def _hold(self, link: _Link) -> None:
        loop = asyncio.get_running_loop()
        link.heard_at = loop.time()
        first = link.peer not in self._links
        self._links.setdefault(link.peer, []).append(link)
        record = self.record(link.peer)
        record.state, record.last_error = "connected", ""
        if first:
            log.info("link.up", peer=short(link.peer))
            self._on_up(link.peer)
        tasks = [
            asyncio.create_task(work, name=f"link {short(link.peer)}")
            for work in (self._read(link), self._write(link), self._watch(link))
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
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
                self._meters.received_bytes[_kind(frame)] += size
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
            self._meters.sent_bytes[_kind(frame)] += size

    async def _watch(self, link: _Link) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() - link.heard_at < SILENCE_MAX_S:
            link.lanes.put(Ping(_now_us()))
            await asyncio.sleep(PING_INTERVAL_S)
        raise PeerError("silent", f"nothing heard for {SILENCE_MAX_S:.0f} s")


def _now_us() -> int:
    # Not the loop's clock: uvloop's counts whole milliseconds, longer than a trip over loopback.
    return time.monotonic_ns() // 1000


def _kind(frame: Frame) -> str:
    """What a frame is counted as."""
    return frame.WhichOneof("kind") or ("consensus" if frame.consensus else "unknown")


def _expect(kind: type[M], read: object) -> M:
    if not isinstance(read, Frame | PeerError):
        raise PeerError("handshake", "the other side closed the stream")
    message = parse_frame(sound(read))
    if not isinstance(message, kind):
        raise PeerError("handshake", f"{type(message).__name__} where {kind.__name__} was due")
    return message
