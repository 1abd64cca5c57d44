"""Who leaves sees to it first that nothing is lost by it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gossip.placement import holders
from shoal.node import operator
from shoal.node.errors import UserError
from shoal.node.handover import FAREWELL_HOLDS_S, Estate, Outstanding, leaving, outstanding
from shoal.node.membership import MembershipEnded
from shoal.node.retention import Piece
from tests.node.mesh import RunningNode, found_mesh, running, until

MEMBERS = [bytes([index]) * 32 for index in range(1, 8)]
PIECES = [Piece(10, bytes([index]) * 32) for index in range(6)]


@given(st.lists(st.sets(st.sampled_from(PIECES)), max_size=5), st.integers(0, 2))
def test_done_is_when_each_piece_has_its_copies_elsewhere(
    held: list[set[Piece]], mute: int
) -> None:
    others = dict.fromkeys(MEMBERS[: len(held) + mute], "")
    estate = Estate(frozenset(PIECES), {}, others, copies=3)
    said = dict(zip(others, held, strict=False))
    left = outstanding(estate, said)
    copies = [sum(piece in pieces for pieces in held) for piece in PIECES]
    assert left.pieces == sum(count < min(3, len(others)) for count in copies)
    assert len(left.silent) == mute


def pieces(node: RunningNode) -> set[tuple[str, str]]:
    paths = node.directory.glob("archive/*/chunks/" + "?" * 64)
    return {(path.parent.parent.name, path.name) for path in paths}


def copies_of(nodes: list[RunningNode]) -> Counter[tuple[str, str]]:
    return Counter(piece for node in nodes for piece in pieces(node))


def in_place(nodes: list[RunningNode]) -> bool:
    """Whether each piece lies with the three that rank first for it, and nothing is on its way."""
    heights = {height for height, _ in copies_of(nodes)}
    on_the_way = [node for node in nodes for h in heights if not archived_only(node, h)]
    ids = [node.id for node in nodes]
    return bool(heights and not on_the_way) and all(
        (piece in pieces(node)) == (node.id in holders(bytes.fromhex(piece[1]), ids, 3))
        for piece in copies_of(nodes)
        for node in nodes
    )


def archived_only(node: RunningNode, height: str) -> bool:
    whole = node.directory / "checkpoints" / height
    return (node.directory / "archive" / height).exists() and not whole.exists()


@asynccontextmanager
async def at_rest(directory: Path) -> AsyncIterator[list[RunningNode]]:
    """A mesh of five whose archive is settled and that trains no more."""

    def settled() -> bool:
        trained = all(node.node.status().training.round >= 10 for node in nodes)
        return trained and not any(n.model.book.pending() for n in nodes) and in_place(nodes)

    retention: dict[str, object] = {"retention__keep_every": 1}
    async with running(found_mesh(directory, nodes=5), rounds=10, **retention) as nodes:
        await until(settled, nodes, seconds=120)
        yield nodes


@pytest.mark.timeout(300)
def test_three_others_keep_what_it_kept_before_it_is_gone(tmp_path: Path) -> None:
    async def story() -> None:
        async with at_rest(tmp_path) as nodes:
            leaver = max(nodes, key=lambda node: len(pieces(node)))
            others = [node for node in nodes if node is not leaver]
            kept = pieces(leaver)
            assert {copies_of(others)[piece] for piece in kept} == {2}
            reports: list[Outstanding] = []

            def leave() -> str:
                return operator.leave(
                    leaver.directory, force=False, limit_s=60, report=reports.append
                )

            assert "leaving" in await asyncio.to_thread(leave)
            copies = copies_of(others)
            assert {piece: copies[piece] for piece in kept if copies[piece] < 3} == {}
            assert reports[-1].pieces == 0
            await until(lambda: leaver.failed() is not None, others)
            assert isinstance(leaver.cause(), MembershipEnded)
            assert leaver.id not in others[0].node.state.consensus.replica.ledger.members

    asyncio.run(story())


@pytest.mark.timeout(300)
def test_it_stays_while_others_cannot_take_over_and_is_counted_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with at_rest(tmp_path) as nodes:
            leaver = max(nodes, key=lambda node: len(pieces(node)))
            others = [node for node in nodes if node is not leaver]
            for gone in others[2:]:
                nodes.remove(gone)
                await gone.stop()

            def leave() -> str:
                return operator.leave(
                    leaver.directory, force=False, limit_s=3, report=lambda left: None
                )

            with pytest.raises(UserError, match=r"has not left.*no answer from.*--no-handover"):
                await asyncio.to_thread(leave)
            assert leaver.id in leaver.node.state.consensus.replica.ledger.members
            links = others[0].node.links
            assert leaving(links) == {leaver.id}
            loop = asyncio.get_running_loop()
            later = loop.time() + FAREWELL_HOLDS_S
            monkeypatch.setattr(loop, "time", lambda: later)
            assert leaving(links) == frozenset()
            monkeypatch.undo()

    asyncio.run(story())
