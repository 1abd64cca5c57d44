"""Who leaves sees to it first that nothing is lost by it."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.node import operator
from shoal.node.config import load_settings
from shoal.node.errors import UserError
from shoal.node.handover import FAREWELL_HOLDS_S, Estate, Outstanding, leaving, outstanding
from shoal.node.membership import MembershipEnded
from shoal.node.retention import Piece
from tests.node.mesh import QUICK, RunningNode, found_mesh, until

RETENTION: dict[str, object] = {"retention.keep_every": 2, "retention.archived_max": 2}
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


async def _start(directories: list[Path]) -> list[RunningNode]:
    """A mesh whose archive is settled and that trains no more."""
    settings = {**QUICK, **RETENTION, "train.max_rounds": 10}
    nodes = [RunningNode(each, load_settings(each, settings)) for each in directories]
    for node in nodes:
        await node.start()

    def settled() -> bool:
        copies = Counter(piece for node in nodes for piece in pieces(node))
        done = all(
            node.node.status().training.round >= 10 and not node.model.book.pending()
            for node in nodes
        )
        return done and bool(copies) and set(copies.values()) == {3}

    await until(settled, nodes, seconds=120)
    return nodes


async def _stop(nodes: list[RunningNode]) -> None:
    await asyncio.gather(*(node.stop() for node in nodes), return_exceptions=True)


@pytest.mark.timeout(300)
def test_three_others_keep_what_it_kept_before_it_is_gone(tmp_path: Path) -> None:
    async def story() -> None:
        nodes = await _start(found_mesh(tmp_path, nodes=5))
        try:
            leaver = max(nodes, key=lambda node: len(pieces(node)))
            others = [node for node in nodes if node is not leaver]
            kept = pieces(leaver)
            assert kept, "it keeps something"
            reports: list[Outstanding] = []

            def leave() -> str:
                return operator.leave(
                    leaver.directory, force=False, limit_s=60, report=reports.append
                )

            assert "leaving" in await asyncio.to_thread(leave)
            copies = Counter(piece for node in others for piece in pieces(node))
            assert all(copies[piece] >= 3 for piece in kept)
            assert reports[0].pieces > 0 and reports[-1].pieces == 0
            await until(lambda: leaver.failed() is not None, others)
            assert isinstance(leaver.cause(), MembershipEnded)
            assert leaver.id not in others[0].node.state.consensus.replica.ledger.members
        finally:
            await _stop(nodes)

    asyncio.run(story())


@pytest.mark.timeout(300)
def test_it_stays_while_others_cannot_take_over_and_is_counted_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        nodes = await _start(found_mesh(tmp_path, nodes=5))
        try:
            leaver = max(nodes, key=lambda node: len(pieces(node)))
            others = [node for node in nodes if node is not leaver]
            for gone in others[2:]:
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
        finally:
            await _stop(nodes)

    asyncio.run(story())
