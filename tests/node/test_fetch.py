"""A checkpoint fetched over real gRPC from several holders at once, some of them bad."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shoal.gossip.tree import CHUNK_BYTES
from shoal.node import bulk
from shoal.node.fetch import fetch_checkpoint
from shoal.node.fetch_plan import FetchSettings
from shoal.node.meters import Meters
from shoal.node.pieces import PieceDirectory, assemble
from tests.node.holders import (
    HEIGHT,
    MESH_ID,
    Careful,
    Flooder,
    Holder,
    Liar,
    MadeUpCheckpoint,
    Miser,
    Mortal,
    Sleeper,
    serving,
)

QUICK = FetchSettings(stall_s=1.0, backoff_s=0.05, backoff_max_s=0.2)
CHUNKS = 12


@pytest.fixture(scope="module")
def checkpoint() -> MadeUpCheckpoint:
    return MadeUpCheckpoint(CHUNKS)


def kept_by(directory: Path) -> list[Path]:
    """The chunks that a fetch has kept so far."""
    return sorted((directory / f".{HEIGHT}.part" / "chunks").glob("?" * 64))


async def until_kept(directory: Path, count: int) -> None:
    async with asyncio.timeout(60):
        while len(kept_by(directory)) < count:  # noqa: ASYNC110 - it waits for the disk
            await asyncio.sleep(0.01)


async def fetch(
    checkpoint: MadeUpCheckpoint,
    stubs: dict[str, Any],
    directory: Path,
    meters: Meters,
    *,
    above: int = 0,
) -> PieceDirectory | None:
    return await fetch_checkpoint(
        mesh_id=MESH_ID,
        holders=stubs,
        certify=checkpoint.certify,
        directory=directory,
        anchor_bytes=len(checkpoint.data),
        above=above,
        meters=meters,
        settings=QUICK,
    )


async def fetched(
    checkpoint: MadeUpCheckpoint, directory: Path, *holders: Holder, seconds: float = 30
) -> Meters:
    """Fetch from these holders and check that every byte is there; returns what was counted."""
    meters = Meters()
    async with asyncio.timeout(seconds), serving(*holders) as stubs:
        part = await fetch(checkpoint, stubs, directory, meters)
    assert part is not None
    assert assemble(part) == (checkpoint.description, checkpoint.data)
    return meters


def test_two_holders_share_the_load(checkpoint: MadeUpCheckpoint, tmp_path: Path) -> None:
    one, two = Holder(checkpoint), Holder(checkpoint)
    meters = asyncio.run(fetched(checkpoint, tmp_path, one, two))
    assert one.served.total() >= 3
    assert two.served.total() >= 3
    assert meters.pieces["fetched"] == CHUNKS
    assert not meters.rejected


def test_each_of_three_has_a_third_and_together_it_is_all(
    checkpoint: MadeUpCheckpoint, tmp_path: Path
) -> None:
    thirds = [Holder(checkpoint, has=range(start, CHUNKS, 3)) for start in range(3)]
    asyncio.run(fetched(checkpoint, tmp_path, *thirds))
    for each in thirds:
        assert set(each.served) == each.has


def test_one_dies_in_the_middle_and_the_other_finishes(
    checkpoint: MadeUpCheckpoint, tmp_path: Path
) -> None:
    mortal, other = Mortal(checkpoint), Holder(checkpoint)
    asyncio.run(fetched(checkpoint, tmp_path, mortal, other))
    assert mortal.served.total() == 3
    assert other.served.total() >= CHUNKS - 3


def test_a_liar_is_named_and_asked_nothing_more(
    checkpoint: MadeUpCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    liar, honest = Liar(checkpoint), Holder(checkpoint)
    meters = asyncio.run(fetched(checkpoint, tmp_path, liar, honest))
    assert 1 <= meters.rejected["chunk-hash"] <= QUICK.parallel
    assert liar.served.total() <= QUICK.parallel, "what was in flight when it was found out"
    assert set(honest.served) == set(checkpoint.addresses)
    assert "liar0" in capsys.readouterr().out


def test_one_that_stalls_does_not_hold_up_the_rest(
    checkpoint: MadeUpCheckpoint, tmp_path: Path
) -> None:
    sleeper, other = Sleeper(checkpoint), Holder(checkpoint)
    started = time.monotonic()
    asyncio.run(fetched(checkpoint, tmp_path, sleeper, other))
    assert sleeper.served.total() >= 1
    assert set(other.served) == set(checkpoint.addresses)
    assert time.monotonic() - started < 10


def test_all_of_it_at_once(checkpoint: MadeUpCheckpoint, tmp_path: Path) -> None:
    bad = [kind(checkpoint) for kind in (Liar, Mortal, Sleeper, Flooder)]
    good = [Holder(checkpoint, has=range(CHUNKS // 2)), Holder(checkpoint)]
    meters = asyncio.run(fetched(checkpoint, tmp_path, *bad, *good))
    assert meters.rejected["chunk-hash"] >= 1
    assert meters.rejected["oversized"] >= 1


def test_too_much_is_refused_and_not_kept(checkpoint: MadeUpCheckpoint, tmp_path: Path) -> None:
    async def story() -> None:
        meters = Meters()
        async with serving(Flooder(checkpoint)) as stubs:
            with pytest.raises(bulk.FetchFailed, match="oversized"):
                await fetch(checkpoint, stubs, tmp_path, meters)
        assert meters.received_bytes["bulk"] == 0
        assert not kept_by(tmp_path)

    asyncio.run(story())


def test_too_little_is_refused_too(checkpoint: MadeUpCheckpoint, tmp_path: Path) -> None:
    miser = Miser(checkpoint)
    meters = asyncio.run(fetched(checkpoint, tmp_path, miser, Holder(checkpoint)))
    assert 1 <= meters.rejected["chunk-size"] <= QUICK.parallel
    assert miser.served.total() <= QUICK.parallel


def test_a_chunk_that_nobody_has_is_named(checkpoint: MadeUpCheckpoint, tmp_path: Path) -> None:
    async def story() -> None:
        without = [each for each in range(CHUNKS) if each != 5]
        holders = [Holder(checkpoint, has=without), Holder(checkpoint, has=without)]
        async with serving(*holders) as stubs:
            with pytest.raises(bulk.FetchFailed, match=rf"chunk 5 .* of checkpoint {HEIGHT}: 2"):
                await fetch(checkpoint, stubs, tmp_path, Meters())

    asyncio.run(story())


def test_a_description_that_is_not_certified_is_refused_and_the_others_are_asked(
    checkpoint: MadeUpCheckpoint, tmp_path: Path
) -> None:
    forged = MadeUpCheckpoint(CHUNKS, height=HEIGHT + 1, seed=1)
    meters = asyncio.run(fetched(checkpoint, tmp_path, Holder(forged), Holder(checkpoint)))
    assert meters.rejected["checkpoint-root"] == 1


def test_nothing_newer_is_no_failure_and_nobody_there_is_one(
    checkpoint: MadeUpCheckpoint, tmp_path: Path
) -> None:
    async def story() -> None:
        holder = Holder(checkpoint)
        async with serving(holder) as stubs:
            assert await fetch(checkpoint, stubs, tmp_path, Meters(), above=HEIGHT) is None
            await holder.stop()
            with pytest.raises(bulk.FetchFailed, match="UNAVAILABLE"):
                await fetch(checkpoint, stubs, tmp_path, Meters())
        assert not os.listdir(tmp_path)

    asyncio.run(story())


def test_a_fetch_that_was_cut_off_transfers_only_the_rest(
    checkpoint: MadeUpCheckpoint, tmp_path: Path
) -> None:
    async def story() -> None:
        first = Careful(checkpoint)
        async with serving(first) as stubs:
            cut_off = asyncio.create_task(fetch(checkpoint, stubs, tmp_path, Meters()))
            await until_kept(tmp_path, 5)
            cut_off.cancel()
            await asyncio.gather(cut_off, return_exceptions=True)
        # A thread that is in the middle of a file goes on to its end.
        await asyncio.sleep(0.5)
        kept = kept_by(tmp_path)
        kept[0].write_bytes(b"rot" + kept[0].read_bytes()[3:])
        kept[1].write_bytes(kept[1].read_bytes()[:-1])
        (kept[0].parent / ("ab" * 32 + ".new")).write_bytes(b"half of something")
        sound = sum(path.stat().st_size for path in kept[2:])
        meters = await fetched(checkpoint, tmp_path, Holder(checkpoint))
        assert meters.received_bytes["bulk"] == len(checkpoint.data) - sound
        assert len(os.listdir(kept[0].parent)) == CHUNKS

    asyncio.run(story())


def test_a_process_killed_in_the_middle_leaves_what_it_had(tmp_path: Path) -> None:
    count = 40
    checkpoint = MadeUpCheckpoint(count)

    async def story() -> None:
        holder = Careful(checkpoint)
        async with serving(holder) as stubs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.node.fetching_process",
                str(tmp_path),
                holder.address,
                str(count),
            )
            await until_kept(tmp_path, 8)
            process.kill()
            await process.wait()
            kept = kept_by(tmp_path)
            assert 8 <= len(kept) < count
            sound = sum(path.stat().st_size for path in kept)
            meters = Meters()
            part = await fetch(checkpoint, stubs, tmp_path, meters)
            assert part is not None
            assert assemble(part)[1] == checkpoint.data
            assert meters.received_bytes["bulk"] == len(checkpoint.data) - sound

    asyncio.run(story())


def test_a_part_of_an_older_height_is_gone_on_with_while_somebody_has_it(tmp_path: Path) -> None:
    older, newer = MadeUpCheckpoint(3), MadeUpCheckpoint(3, height=HEIGHT + 1, seed=1)

    class Both(Holder):
        """Has the newer checkpoint, and still the older one."""

        async def describe(self, height: int) -> Any:
            return older.description if height == HEIGHT else newer.description

        async def held(self, height: int) -> Any:
            return await Holder(older if height == HEIGHT else newer).held(height)

        async def chunk(self, height: int, address: bytes) -> bytes | None:
            return await Holder(older if height == HEIGHT else newer).chunk(height, address)

    async def story() -> None:
        begun = PieceDirectory(tmp_path / f".{HEIGHT}.part", HEIGHT, len(older.data))
        begun.describe(older.description)
        begun.write(older.addresses[0], older.data[:CHUNK_BYTES])
        async with serving(Both(newer)) as stubs:
            heights = []
            for above in (0, HEIGHT):
                part = await fetch_checkpoint(
                    mesh_id=MESH_ID,
                    holders=stubs,
                    certify=lambda described: None,
                    directory=tmp_path,
                    anchor_bytes=len(older.data),
                    above=above,
                    meters=Meters(),
                )
                assert part is not None
                heights.append(part.height)
        assert heights == [HEIGHT, HEIGHT + 1]
        assert not begun.path.exists(), "made room for the newer one"

    asyncio.run(story())
