"""Everything that a member was ever sent, said again to everybody: nothing comes of it."""

import asyncio
from pathlib import Path
from typing import NamedTuple

import pytest

from shoal.gossip.delta import Delta
from shoal.node.wire import ConsensusMessages
from tests.abuse.hostile import Hostile
from tests.abuse.test_hostile_member import besieged
from tests.node.mesh import RunningNode, found_mesh, until

ROUNDS = 16
FRAME_MESSAGES = 64


class Standing(NamedTuple):
    """What a node holds true."""

    ledger: bytes
    sequence: int
    height: int
    committed: bytes
    live: bytes
    pending: int
    links: tuple[bytes, ...]
    evidence: int


def standing(node: RunningNode) -> Standing:
    ledger = node.node.state.consensus.replica.ledger
    return Standing(
        ledger.digest(),
        ledger.sequence,
        node.height,
        node.model.committed.root(),
        node.model.live.root(),
        len(node.model.book.pending()),
        tuple(node.node.links.connected),
        len(node.node.state.consensus.evidence),
    )


def _at_rest(nodes: list[RunningNode]) -> bool:
    """All have the same deltas, and a cut has taken them: what is pending gets one of its own."""
    now = [standing(node)._replace(links=()) for node in nodes]
    done = all(node.node.status().training.round >= ROUNDS for node in nodes)
    return done and len(set(now)) == 1 and now[0].pending == 0 and now[0].height >= 2


async def _everything_held(nodes: list[RunningNode]) -> list[Delta]:
    """Each delta that a node still has, as it was signed."""
    found = []
    for header in {header.id: header for node in nodes for header in node.headers}.values():
        blob = await nodes[0].node.delta_blob(header.sender, header.sequence, header.id)
        if blob is not None:
            found.append(Delta.from_bytes(blob, frame_bytes_max=len(blob)))
    return found


def _say_again(evil: Hostile, victims: list[bytes], words: list[bytes]) -> None:
    for victim in victims:
        for start in range(0, len(words), FRAME_MESSAGES):
            evil.links.send(victim, ConsensusMessages(tuple(words[start : start + FRAME_MESSAGES])))


def _heard_to_the_end(nodes: list[RunningNode], before: list[int]) -> bool:
    """Noise, sent last, has been refused: what came before it was looked at."""
    now = [node.node.status().rejected["unknown-message"] for node in nodes]
    return all(more > less for more, less in zip(now, before, strict=True))


@pytest.mark.timeout(300)
def test_what_was_said_once_has_no_effect_when_it_is_said_again(tmp_path: Path) -> None:
    async def story() -> None:
        mesh = found_mesh(tmp_path)
        async with besieged(mesh, rounds=ROUNDS) as (nodes, evil, _):
            victims = [node.id for node in nodes]
            await until(lambda: len(evil.links.connected) == 3, nodes)
            await until(lambda: _at_rest(nodes), nodes, seconds=120)
            before = [standing(node) for node in nodes]
            refused = [node.node.status().rejected["unknown-message"] for node in nodes]
            words = [data for _, data in evil.heard]
            deltas = await _everything_held(nodes)
            assert len(words) > 30 and len(deltas) >= 3, "there is something to say again"

            for _ in range(2):
                _say_again(evil, victims, words)
                for victim in victims:
                    for delta in deltas:
                        evil.offer(victim, delta)
            for victim in victims:
                evil.say(victim, b"\xff" * 40)
            await until(lambda: _heard_to_the_end(nodes, refused), nodes)

            assert [standing(node) for node in nodes] == before
            assert not any(node.node.status().rejected["equivocation"] for node in nodes)

    asyncio.run(story())
