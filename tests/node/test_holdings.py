"""What a node's disk looks like after commits: whole, in pieces, gone; and never under a reader."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.gossip.chunks import split
from shoal.node.bulk_wire import Description
from shoal.node.holdings import Holdings
from shoal.node.leases import QUIET_S
from shoal.node.meters import Meters
from shoal.node.pieces import PieceDirectory
from shoal.node.retention import DELTA_LOG, Piece, Retention
from tests.node.holders import MadeUpCheckpoint

ME, OTHER = b"\x01" * 32, b"\x02" * 32
CHECKPOINT = MadeUpCheckpoint(4)


class Disk:
    """The directory of one node, and a clock that the test turns."""

    def __init__(self, directory: Path, retention: Retention | None = None) -> None:
        self.directory = directory
        self.now = 0.0
        self.meters = Meters()
        self.holdings = Holdings(
            directory,
            anchor_bytes=len(CHECKPOINT.data),
            retention=retention or Retention(keep_whole=2, keep_every=10),
            meters=self.meters,
            clock=lambda: self.now,
        )

    def commit(self, *heights: int) -> None:
        """Write whole checkpoints as the checkpointer does: the anchor in chunks."""
        for height in heights:
            path = self.directory / "checkpoints" / str(height)
            whole = PieceDirectory(path, height, len(CHECKPOINT.data))
            whole.describe(
                Description(
                    height,
                    b"operation",
                    b"certificate",
                    b"settled",
                    len(CHECKPOINT.data),
                    tuple(CHECKPOINT.addresses),
                    bytes(4),
                )
            )
            for address, chunk in zip(CHECKPOINT.addresses, split(CHECKPOINT.data), strict=True):
                whole.write(address, bytes(chunk))
            (path / "deltas.bin").write_bytes(b"the deltas")

    def everything(self, height: int) -> set[Piece]:
        return {Piece(height, address) for address in (*CHECKPOINT.addresses, DELTA_LOG)}

    def names(self) -> list[str]:
        return sorted(
            f"{entry.parent.name}/{entry.name}"
            for folder in ("checkpoints", "archive")
            for entry in (self.directory / folder).glob("*")
        )


def test_the_newest_stay_whole_every_tenth_goes_to_the_archive_and_the_rest_away(
    tmp_path: Path,
) -> None:
    disk = Disk(tmp_path)
    disk.commit(8, 9, 10, 11, 12)
    disk.holdings.demote(12)
    assert disk.names() == ["archive/10", "checkpoints/11", "checkpoints/12"]
    archived = disk.holdings.archived(10)
    assert archived.addresses() == set(CHECKPOINT.addresses)
    assert archived.delta_log.read_bytes() == b"the deltas"
    assert disk.holdings.mark(12, ME, {ME}, 3).keep == disk.everything(10)


def test_what_is_served_is_the_same_before_and_after(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.commit(10)
    wanted = dict(zip(CHECKPOINT.addresses, map(bytes, split(CHECKPOINT.data)), strict=True))

    async def all_served() -> None:
        described = await disk.holdings.describe(10)
        assert described is not None
        assert described.addresses == CHECKPOINT.addresses
        for address, data in wanted.items():
            assert await disk.holdings.chunk(10, address) == data
        held = await disk.holdings.held(10)
        assert held is not None
        assert held[0].addresses == frozenset(wanted)
        assert held[0].delta_log
        path = await disk.holdings.delta_log(10)
        assert path is not None
        assert await disk.holdings.chunk(10, b"x" * 32) is None
        assert await disk.holdings.chunk(9, CHECKPOINT.addresses[0]) is None

    asyncio.run(all_served())
    disk.holdings.demote(12)
    assert disk.names() == ["archive/10"]
    asyncio.run(all_served())
    assert disk.meters.pieces["served"] == 2 * len(wanted)


@pytest.mark.parametrize("moment", range(4))
@pytest.mark.parametrize("after", [False, True])
def test_a_reader_in_the_middle_of_the_move_to_the_archive_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, after: bool
) -> None:
    disk = Disk(tmp_path)
    disk.commit(10)
    looks = 0

    def interrupted(look: Callable[..., Any]) -> Callable[..., Any]:
        def looking(*arguments: Any) -> Any:
            nonlocal looks
            looks += 1
            if looks == moment + 1 and not after:
                disk.holdings.demote(12)
            seen = look(*arguments)
            if looks == moment + 1 and after:
                disk.holdings.demote(12)
            return seen

        return looking

    for name in ("addresses", "description", "read"):
        monkeypatch.setattr(PieceDirectory, name, interrupted(getattr(PieceDirectory, name)))

    async def story() -> None:
        held = await disk.holdings.held(10)
        assert held is not None
        assert held[0].addresses == set(CHECKPOINT.addresses)
        assert held[0].delta_log
        assert await disk.holdings.describe(10) is not None
        assert await disk.holdings.chunk(10, CHECKPOINT.addresses[0]) is not None
        assert await disk.holdings.delta_log(10) is not None

    asyncio.run(story())
    assert disk.names() == ["archive/10"], "it was moved"


def test_demoting_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.commit(10)
    archived = disk.holdings.archived(10)
    archived.write(CHECKPOINT.addresses[2], bytes(list(split(CHECKPOINT.data))[2]))
    disk.holdings.demote(12)
    assert archived.addresses() == set(CHECKPOINT.addresses)
    assert disk.names() == ["archive/10"]


def test_a_checkpoint_that_is_being_fetched_stays_until_the_fetch_goes_quiet(
    tmp_path: Path,
) -> None:
    disk = Disk(tmp_path)
    disk.commit(7)
    asyncio.run(disk.holdings.describe(7))
    disk.holdings.demote(9)
    assert disk.names() == ["checkpoints/7"]
    disk.now = QUIET_S - 1
    asyncio.run(disk.holdings.chunk(7, CHECKPOINT.addresses[0]))
    disk.now = QUIET_S + 1
    disk.holdings.demote(10)
    assert disk.names() == ["checkpoints/7"], "the fetch went on"
    disk.now = 3 * QUIET_S
    disk.holdings.demote(11)
    assert disk.names() == []


def test_strangers_who_ask_for_everything_do_not_fill_the_disk(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.commit(*range(1, 10))
    for height in range(1, 10):
        asyncio.run(disk.holdings.describe(height))
    disk.holdings.demote(9)
    assert disk.holdings.whole_heights() == [4, 5, 6, 7, 8, 9]


def test_a_piece_that_is_being_fetched_is_not_swept(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.commit(10)
    disk.holdings.demote(12)
    asyncio.run(disk.holdings.chunk(10, CHECKPOINT.addresses[0]))
    disk.holdings.sweep(disk.everything(10), 12)
    assert disk.holdings.archived(10).addresses() == {CHECKPOINT.addresses[0]}
    disk.now = QUIET_S
    disk.holdings.sweep(disk.everything(10), 12)
    assert disk.holdings.archived(10).addresses() == frozenset()
    assert disk.holdings.archived(10).description() is not None, "what it was stays known"


def test_an_old_height_that_is_retained_no_more_goes_entirely(tmp_path: Path) -> None:
    disk = Disk(tmp_path, Retention(archived_max=1))
    disk.commit(10)
    disk.holdings.demote(12)
    plan = disk.holdings.mark(22, ME, {ME, OTHER}, 3)
    assert plan.drop == disk.everything(10)
    disk.holdings.sweep(plan.drop, 22)
    assert disk.names() == []
    assert disk.meters.pieces["dropped"] == len(disk.everything(10))


def test_a_pinned_height_stays_and_heights_that_are_unknown_are_listed(tmp_path: Path) -> None:
    disk = Disk(tmp_path, Retention(archived_max=1, pinned=frozenset({3})))
    disk.commit(3)
    disk.holdings.demote(45)
    assert disk.names() == ["archive/3"]
    assert not disk.holdings.mark(45, ME, {OTHER}, 3).hand_over, "pinned: no membership is asked"
    assert disk.holdings.undescribed(45) == [40]
