"""What waits to be sent over one link, in three lanes: pings and probes, consensus, gossip.

Consensus goes before gossip, and whatever of it waits when the stream is free goes in one frame:
a write costs the same for one vote as for thirty. All lanes are bounded. When a neighbour reads too
slowly the oldest gossip is dropped (anti-entropy brings it back), and so is the oldest of consensus
(STATUS retransmission brings that back).
"""

import asyncio
from collections import deque

from shoal.gossip.liveness import Message
from shoal.node.wire import (
    CONSENSUS_FRAME_BYTES_MAX,
    CONSENSUS_MESSAGES_MAX,
    ConsensusMessages,
    Frame,
    LinkMessage,
    Ping,
    Pong,
    make_frame,
)

PINGS_QUEUED_MAX = 64
CONSENSUS_QUEUED_MAX = 4096
# One that does not read at all costs this much and no more; any message fits.
CONSENSUS_QUEUED_BYTES_MAX = 16 << 20
GOSSIP_QUEUED_MAX = 1024


class Lanes:
    """The queues in front of one stream."""

    def __init__(self) -> None:
        self._pings: deque[Frame] = deque(maxlen=PINGS_QUEUED_MAX)
        self._consensus: deque[bytes] = deque()
        self._consensus_bytes = 0
        self._gossip: deque[Frame] = deque(maxlen=GOSSIP_QUEUED_MAX)
        self._wake = asyncio.Event()

    def put(self, message: LinkMessage) -> None:
        """Queue a message in its lane; where that is full, its oldest one goes."""
        match message:
            case ConsensusMessages(messages):
                self._put_consensus(messages)
            case Ping() | Pong() | Message():
                self._pings.append(make_frame(message))
            case _:
                self._gossip.append(make_frame(message))
        self._wake.set()

    def _put_consensus(self, messages: tuple[bytes, ...]) -> None:
        self._consensus.extend(messages)
        self._consensus_bytes += sum(map(len, messages))
        while (
            len(self._consensus) > CONSENSUS_QUEUED_MAX
            or self._consensus_bytes > CONSENSUS_QUEUED_BYTES_MAX
        ):
            self._consensus_bytes -= len(self._consensus.popleft())

    async def take(self) -> Frame:
        """Return what goes next; waits while nothing does."""
        while (frame := self._next()) is None:
            self._wake.clear()
            await self._wake.wait()
        return frame

    def _next(self) -> Frame | None:
        if self._pings:
            return self._pings.popleft()
        if self._consensus:
            return make_frame(ConsensusMessages(self._batch()))
        return self._gossip.popleft() if self._gossip else None

    def _batch(self) -> tuple[bytes, ...]:
        """As many consensus messages, in order, as a frame may hold; at least one."""
        batch = [self._consensus.popleft()]
        size = len(batch[0])
        while self._consensus and len(batch) < CONSENSUS_MESSAGES_MAX:
            size += len(self._consensus[0])
            if size > CONSENSUS_FRAME_BYTES_MAX:
                break
            batch.append(self._consensus.popleft())
        self._consensus_bytes -= sum(map(len, batch))
        return tuple(batch)
