"""The node's memory: durable, ordered, and unusable once it is not what was written."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from shoal.node.database import Database, StoredDelta
from shoal.node.errors import DamagedError


def delta(sequence: int, *, member: bytes = bytes(32), height: int = 0) -> StoredDelta:
    return StoredDelta(member, sequence, sequence.to_bytes(32, "big"), height, b"blob" * sequence)


def test_rows_come_back_after_a_restart(tmp_path: Path) -> None:
    async def first() -> None:
        database = Database(tmp_path / "safety.db")
        await database.persist([("vote/1", b"yes"), ("vote/2", b"no")])
        await database.persist([("vote/2", None), ("view", b"7")])
        await database.close()

    async def second() -> dict[str, bytes]:
        database = Database(tmp_path / "safety.db")
        assert database.boots == 2
        rows = await database.load_rows()
        await database.close()
        return rows

    asyncio.run(first())
    assert asyncio.run(second()) == {"vote/1": b"yes", "view": b"7"}


def test_the_log_of_writes_has_its_full_size_from_the_start(tmp_path: Path) -> None:
    wal = tmp_path / "safety.db-wal"

    async def story() -> None:
        database = Database(tmp_path / "safety.db")
        size = wal.stat().st_size
        for number in range(200):
            await database.persist([(f"vote/{number % 40}", bytes(400)), ("view", bytes(8))])
        assert wal.stat().st_size == size
        await database.close()

    asyncio.run(story())


def test_a_start_that_ended_early_does_not_hinder_the_next(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "safety.db") as left:
        left.execute("CREATE TABLE room (filler BLOB NOT NULL)")
        left.execute("INSERT INTO room VALUES (zeroblob(100000))")
    left.close()

    async def story() -> None:
        await Database(tmp_path / "safety.db").close()

    asyncio.run(story())


def test_an_own_delta_moves_the_sequence_and_others_do_not(tmp_path: Path) -> None:
    async def story() -> None:
        database = Database(tmp_path / "safety.db")
        assert await database.own_sequence() == 0
        await database.put_delta(delta(3), own=True)
        await database.put_delta(delta(9, member=bytes([1]) * 32))
        assert await database.own_sequence() == 3
        await database.close()

    asyncio.run(story())


def test_settled_deltas_are_served_for_a_while_and_then_forgotten(tmp_path: Path) -> None:
    async def story() -> None:
        database = Database(tmp_path / "safety.db")
        for sequence in (1, 2, 3):
            await database.put_delta(delta(sequence))
        await database.settle_deltas([delta(1).delta_id], 1, -7)
        assert [d.sequence for d in await database.unsettled_deltas()] == [2, 3]
        assert await database.get_delta(bytes(32), 1, b"") == delta(1).blob
        await database.settle_deltas([delta(2).delta_id], 9, 2)
        assert await database.get_delta(bytes(32), 1, b"") is None
        assert await database.get_delta(bytes(32), 2, delta(2).delta_id) == delta(2).blob
        assert await database.get_delta(bytes(32), 2, bytes(32)) is None
        await database.close()

    asyncio.run(story())


def test_a_row_that_changed_on_the_disk_is_noticed(tmp_path: Path) -> None:
    async def write() -> None:
        database = Database(tmp_path / "safety.db")
        await database.persist([("vote/1", b"yes")])
        await database.close()

    async def read() -> None:
        database = Database(tmp_path / "safety.db")
        try:
            await database.load_rows()
        finally:
            await database.close()

    asyncio.run(write())
    with sqlite3.connect(tmp_path / "safety.db") as connection:
        connection.execute("UPDATE rows SET value=? WHERE key='vote/1'", (b"no!",))
    connection.close()
    with pytest.raises(DamagedError, match="vote/1"):
        asyncio.run(read())


def test_two_processes_never_hold_it(tmp_path: Path) -> None:
    async def story() -> None:
        database = Database(tmp_path / "safety.db")
        with pytest.raises(DamagedError, match="another process"):
            Database(tmp_path / "safety.db")
        await database.close()

    asyncio.run(story())
