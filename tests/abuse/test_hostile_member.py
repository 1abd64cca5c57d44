"""What a member with a valid key may try: all of it is refused, counted by reason, and the others
go on committing."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from shoal.gossip.delta import Delta
from tests.abuse.hostile import Hostile, hostile_member, with_nan, with_shifted_gaps
from tests.node.mesh import RunningNode, found_mesh, running, until, until_rebuilt


def _garbage(evil: Hostile, victim: bytes) -> None:
    evil.offer(victim, evil.delta(evil.frame(), sequence=101), os.urandom(300))


def _oversized(evil: Hostile, victim: bytes) -> None:
    evil.offer(victim, evil.delta(evil.frame(), sequence=102), bytes(5_000_000))


def _unsigned(evil: Hostile, victim: bytes) -> None:
    honest = evil.delta(evil.frame(), sequence=103)
    evil.offer(victim, Delta(honest.header, bytes(64), honest.frame))


def _not_a_number(evil: Hostile, victim: bytes) -> None:
    evil.offer(victim, evil.delta(with_nan(evil.frame()), sequence=104))


def _broken_streams(evil: Hostile, victim: bytes) -> None:
    tensors = len(evil.layout.sizes)
    evil.offer(victim, evil.delta(with_shifted_gaps(evil.frame(), tensors), sequence=105))


def _from_the_future(evil: Hostile, victim: bytes) -> None:
    evil.offer(victim, evil.delta(evil.frame(), sequence=107, height=1_000_000))


def _other_than_named(evil: Hostile, victim: bytes) -> None:
    other = evil.delta(evil.frame(seed=1), sequence=109)
    evil.offer(victim, evil.delta(evil.frame(), sequence=108), other.to_bytes())


def _noise(evil: Hostile, victim: bytes) -> None:
    # No message begins so; other bytes may happen to begin one that is refused for something else.
    evil.say(victim, b"\xff" + os.urandom(199))


ATTEMPTS: dict[str, tuple[Callable[[Hostile, bytes], None], set[str]]] = {
    "garbage": (_garbage, {"truncated", "bad-header", "wrong-size", "too-large"}),
    "oversized": (_oversized, {"oversized"}),
    "unsigned": (_unsigned, {"bad-signature"}),
    "not a number": (_not_a_number, {"bad-centroids"}),
    "broken streams": (_broken_streams, {"bad-stream", "bad-counts", "bad-stream-size"}),
    "from the future": (_from_the_future, {"future"}),
    "other than named": (_other_than_named, {"wrong-delta"}),
    "noise for consensus": (_noise, {"unknown-message", "truncated", "trailing-bytes"}),
}


@asynccontextmanager
async def besieged(
    directories: list[Path], *, rounds: int = 0
) -> AsyncIterator[tuple[list[RunningNode], Hostile, bytes]]:
    """Three honest nodes, a hostile one linked to the first of them, and that one's id."""
    async with (
        running(directories[:3], rounds=rounds) as nodes,
        hostile_member(directories[3]) as evil,
    ):
        victim = nodes[0].node.state.node_id
        await until(lambda: victim in evil.links.connected, nodes)
        yield nodes, evil, victim


@pytest.mark.timeout(300)
def test_every_attempt_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with besieged(found_mesh(tmp_path)) as (nodes, evil, me):
            victim = nodes[0]
            for attempt, reasons in ATTEMPTS.values():
                evil.height = victim.height
                seen = _refused(victim, reasons)
                attempt(evil, me)
                await until(partial(_more_refused, victim, reasons, seen), nodes)
            await until_rebuilt(nodes, victim.height + 1)

    asyncio.run(story())


def _is_out(node: RunningNode, member: bytes) -> bool:
    replica = node.node.state.consensus.replica
    return replica.ledger.is_evicted(member) and member not in replica.validators.keys


def _is_cut_off(node: RunningNode, member: bytes) -> bool:
    links = node.node.links
    return member not in links.connected and member not in links.trust.trusted


def _more_refused(node: RunningNode, reasons: set[str], seen: int) -> bool:
    return _refused(node, reasons) > seen


def _refused(node: RunningNode, reasons: set[str]) -> int:
    counts = node.node.status().rejected
    return sum(counts[reason] for reason in reasons if reason in counts)


def test_a_stale_delta_and_a_replayed_one_are_counted(tmp_path: Path) -> None:
    async def story() -> None:
        async with besieged(found_mesh(tmp_path, staleness=1)) as (nodes, evil, me):
            victim = nodes[0]
            first = evil.delta(evil.frame(), sequence=1)
            evil.offer(me, first)
            key = first.header.key
            await until(lambda: victim.model.book.settled.is_settled(key), nodes)
            with pytest.raises(ValueError, match=r"replayed|stale"):
                await victim.model.add(first)
            await until(lambda: victim.height >= 4, nodes)
            evil.offer(me, evil.delta(evil.frame(), sequence=2))
            await until(lambda: _refused(victim, {"stale"}) > 0, nodes)

    asyncio.run(story())


def test_two_deltas_for_one_number_put_their_sender_out(tmp_path: Path) -> None:
    async def story() -> None:
        # No cut is due while this is watched, so the first of the two stays pending.
        async with besieged(found_mesh(tmp_path, rounds_per_checkpoint=200)) as (nodes, evil, me):
            victim = nodes[0]
            first, second = (evil.delta(evil.frame(seed=seed), sequence=1) for seed in (1, 2))
            evil.offer(me, first)
            await until(lambda: victim.model.book.get(first.header.key) is not None, nodes)
            evil.offer(me, second)
            await until(lambda: _refused(victim, {"equivocation"}) > 0, nodes)
            held = victim.model.book.get(first.header.key)
            assert held is not None
            assert held.id == first.header.id, "the first one stays"
            liar = evil.identity.node_id
            await until(lambda: all(_is_out(node, liar) for node in nodes), nodes)
            await until(lambda: all(_is_cut_off(node, liar) for node in nodes), nodes, seconds=2)
            assert {node.node.status().consensus.validators for node in nodes} == {3}

    asyncio.run(story())
