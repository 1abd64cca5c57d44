"""What waits for a neighbour that does not read is bounded in number and in bytes."""

import asyncio

from shoal.node.lanes import (
    CONSENSUS_QUEUED_BYTES_MAX,
    CONSENSUS_QUEUED_MAX,
    GOSSIP_QUEUED_MAX,
    Lanes,
)
from shoal.node.wire import Announced, ConsensusMessages, Ping


def drained(lanes: Lanes) -> list[bytes]:
    """Everything of consensus that waits."""

    async def take() -> list[bytes]:
        found: list[bytes] = []
        while lanes._consensus:
            found += (await lanes.take()).consensus
        return found

    return asyncio.run(take())


def test_the_oldest_goes_where_there_are_too_many() -> None:
    lanes = Lanes()
    for number in range(CONSENSUS_QUEUED_MAX + 10):
        lanes.put(ConsensusMessages((number.to_bytes(4, "big"),)))
    found = drained(lanes)
    assert len(found) == CONSENSUS_QUEUED_MAX
    assert found[0] == (10).to_bytes(4, "big")
    assert lanes._consensus_bytes == 0


def test_the_oldest_goes_where_they_are_too_large() -> None:
    lanes = Lanes()
    for number in range(40):
        lanes.put(ConsensusMessages((bytes([number]) * (1 << 20),)))
    found = drained(lanes)
    assert sum(map(len, found)) == CONSENSUS_QUEUED_BYTES_MAX
    assert found[-1][0] == 39
    assert lanes._consensus_bytes == 0


def test_pings_and_gossip_are_bounded_too_and_pings_go_first() -> None:
    lanes = Lanes()
    for number in range(GOSSIP_QUEUED_MAX + 5):
        lanes.put(Announced(((bytes(32), 1, bytes(32)),)))
        lanes.put(Ping(number))
    assert len(lanes._gossip) == GOSSIP_QUEUED_MAX
    assert asyncio.run(lanes.take()).HasField("ping")
