"""What a node must not forget: its votes, its sequence number, the deltas and cuts it holds.

One SQLite file, one connection, one thread. Every transaction is durable (WAL,
synchronous=FULL) before its awaiter goes on: that is the "persist before send" of
consensus.md 1.8. A failing fsync is never retried: the exception ends the process, because
after it nobody knows which pages are on the disk.

A key that has voted must never vote again without the memory of its votes. So a small marker
beside the database counts the boots of this key; a database that is missing or older than the
marker is a restored backup or a loss, and the node refuses to start.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import apsw

from shoal.node.errors import DamagedError
from shoal.node.one_thread import OneThread

T = TypeVar("T")

SCHEMA_VERSION = 1
# Of 256 rows: one statement has room for 32,766 values, and its text is kept for the next time.
ROW_VALUES_MAX = 3 * 256
# SQLite moves the WAL into the database, and starts it anew, when it has a thousand pages.
ROOM_BYTES = 1024 * 4096
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, value BLOB NOT NULL, crc INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deltas (
    member BLOB NOT NULL, sequence INTEGER NOT NULL, delta_id BLOB NOT NULL,
    height INTEGER NOT NULL, settled_at INTEGER NOT NULL DEFAULT 0, blob BLOB NOT NULL,
    PRIMARY KEY (member, sequence, delta_id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS deltas_by_id ON deltas (delta_id);
CREATE TABLE IF NOT EXISTS cuts (
    height INTEGER PRIMARY KEY, operation BLOB NOT NULL, certificate BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class StoredDelta:
    """One delta as it lies in the database."""

    member: bytes
    sequence: int
    delta_id: bytes
    height: int
    blob: bytes


class Database:
    """The node's only durable memory besides its checkpoint directories."""

    def __init__(self, path: Path) -> None:
        """Open or make the database at `path`; raises DamagedError when it must not be used."""
        self._path = path
        self._marker = path.with_name("boots")
        self._noted: dict[str, bytes] = {}
        self.boots = self._open()
        self._thread = OneThread("database")

    def _open(self) -> int:
        known_boots = self._read_marker()
        if known_boots and not self._path.exists():
            raise DamagedError(
                f"{self._path} is missing, but this key has started {known_boots} times, and a "
                f"node that forgot its votes must not vote again; {_NEW_KEY}"
            )
        try:
            self._connection = apsw.Connection(str(self._path))
            self._connection.set_busy_timeout(0)
            self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            if self._one("PRAGMA synchronous") != 2:
                raise DamagedError(f"{self._path} cannot be opened with synchronous=FULL")
            health = self._one("PRAGMA quick_check")
            if health != "ok":
                raise DamagedError(f"{self._path} is damaged ({health}); {_NEW_KEY}")
            with self._connection:
                self._connection.execute(_SCHEMA)
            self._make_room()
        except apsw.BusyError:
            raise DamagedError(
                f"{self._path} is in use; another process runs this node: stop it first"
            ) from None
        except (apsw.NotADBError, apsw.CorruptError) as error:
            raise DamagedError(f"{self._path} is damaged ({error}); {_NEW_KEY}") from None
        return self._count_boot(known_boots)

    def _make_room(self) -> None:
        """Give the WAL its full size: to sync one that still grows costs half as much again.

        What is written is as long as the WAL may become, so it is moved to the database when it is
        committed, and from then on the WAL is written over from its beginning.
        """
        with self._connection:
            # It is there already where the last start ended between the two transactions.
            self._connection.execute("CREATE TABLE IF NOT EXISTS room (filler BLOB NOT NULL)")
            self._connection.execute("INSERT INTO room VALUES (zeroblob(?))", (ROOM_BYTES,))
        with self._connection:
            self._connection.execute("DROP TABLE room")

    def _count_boot(self, known_boots: int) -> int:
        stored = self._one("SELECT value FROM meta WHERE key='boots'")
        boots = int.from_bytes(stored, "big") if stored else 0
        if boots < known_boots:
            raise DamagedError(
                f"{self._path} is older than this key's last start (boot {boots} < {known_boots}), "
                f"and a restored backup must not vote; {_NEW_KEY}"
            )
        with self._connection:
            self._put_meta("boots", (boots + 1).to_bytes(8, "big"))
        temporary = self._marker.with_suffix(".new")
        temporary.write_text(f"{boots + 1}\n")
        with temporary.open() as file:
            os.fsync(file.fileno())
        temporary.replace(self._marker)
        return boots + 1

    def _read_marker(self) -> int:
        try:
            return int(self._marker.read_text())
        except FileNotFoundError:
            return 0
        except ValueError:
            raise DamagedError(f"{self._marker} is damaged; {_NEW_KEY}") from None

    def _one(self, statement: str, bindings: tuple[Any, ...] = ()) -> Any:
        return self._connection.execute(statement, bindings).get

    def _put_meta(self, key: str, value: bytes) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    async def _run(self, work: Callable[[], T]) -> T:
        return await self._thread.run(work)

    def note(self, key: str, value: bytes) -> None:
        """Keep one small named value, at the latest with the next transaction.

        For what may be forgotten in a crash: after it the node does a little again.
        """
        self._noted[key] = value

    def _put_noted(self) -> None:
        while self._noted:
            self._put_meta(*self._noted.popitem())

    async def persist(self, rows: Iterable[tuple[str, bytes | None]]) -> None:
        """Write (or with None delete) consensus rows in one durable transaction."""
        written: list[Any] = []
        deleted: list[str] = []
        for key, value in rows:
            if value is None:
                deleted.append(key)
            else:
                written += (key, value, _row_crc(key, value))

        # One statement for each kind: between two of them this thread has to win back the
        # interpreter from the event loop, and everything that is to be sent waits for it.
        statements: list[tuple[str, tuple[Any, ...]]] = []
        for first in range(0, len(written), ROW_VALUES_MAX):
            values = tuple(written[first : first + ROW_VALUES_MAX])
            places = ",".join(["(?,?,?)"] * (len(values) // 3))
            statements.append((f"INSERT OR REPLACE INTO rows VALUES {places}", values))
        if deleted:
            keys = "SELECT value FROM json_each(?)"
            statements.append((f"DELETE FROM rows WHERE key IN ({keys})", (json.dumps(deleted),)))

        def work() -> None:
            if len(statements) == 1 and not self._noted:
                # A statement alone is a transaction already.
                self._connection.execute(*statements[0])
                return
            with self._connection:
                self._put_noted()
                for statement in statements:
                    self._connection.execute(*statement)

        await self._run(work)

    async def load_rows(self) -> dict[str, bytes]:
        """Return all consensus rows; raises DamagedError where one is not what was written."""

        def work() -> dict[str, bytes]:
            rows: dict[str, bytes] = {}
            for key, value, crc in self._connection.execute("SELECT key, value, crc FROM rows"):
                if _row_crc(key, value) != crc:
                    raise DamagedError(f"{self._path} is damaged (row {key}); {_NEW_KEY}")
                rows[key] = value
            return rows

        return await self._run(work)

    async def put_delta(self, delta: StoredDelta, *, own: bool = False) -> None:
        """Keep a delta; an own one moves this key's sequence number in the same transaction."""

        def work() -> None:
            with self._connection:
                self._connection.execute(
                    "INSERT OR IGNORE INTO deltas (member, sequence, delta_id, height, blob)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (delta.member, delta.sequence, delta.delta_id, delta.height, delta.blob),
                )
                if own:
                    self._put_meta("sequence", delta.sequence.to_bytes(8, "big"))

        await self._run(work)

    async def own_sequence(self) -> int:
        """Return the last sequence number that this key has used; 0 when none."""
        stored = await self.get_meta("sequence")
        return int.from_bytes(stored, "big") if stored else 0

    async def get_delta(self, member: bytes, sequence: int, delta_id: bytes) -> bytes | None:
        """Return a delta's blob; an empty `delta_id` takes any that stands at that sequence."""
        clause = " AND delta_id=?" if delta_id else ""
        bindings = (member, sequence, delta_id) if delta_id else (member, sequence)

        def work() -> bytes | None:
            found: bytes | None = self._one(
                f"SELECT blob FROM deltas WHERE member=? AND sequence=?{clause} LIMIT 1", bindings
            )
            return found

        return await self._run(work)

    async def unsettled_deltas(self) -> list[StoredDelta]:
        """Return every delta that no cut has settled yet, by member and sequence."""

        def work() -> list[StoredDelta]:
            return [
                StoredDelta(*row)
                for row in self._connection.execute(
                    "SELECT member, sequence, delta_id, height, blob FROM deltas"
                    " WHERE settled_at=0 ORDER BY member, sequence"
                )
            ]

        return await self._run(work)

    async def settle_deltas(self, delta_ids: Iterable[bytes], height: int, keep_from: int) -> None:
        """Mark deltas as settled at `height`; forget those that were settled below `keep_from`."""
        bindings = [(height, delta_id) for delta_id in delta_ids]

        def work() -> None:
            with self._connection:
                self._connection.executemany(
                    "UPDATE deltas SET settled_at=? WHERE delta_id=?", bindings
                )
                self._connection.execute(
                    "DELETE FROM deltas WHERE settled_at>0 AND settled_at<?", (keep_from,)
                )

        await self._run(work)

    async def put_cut(self, height: int, operation: bytes, certificate: bytes) -> None:
        """Keep a committed checkpoint operation and its certificate, verbatim."""

        def work() -> None:
            with self._connection:
                self._connection.execute(
                    "INSERT OR REPLACE INTO cuts VALUES (?, ?, ?)",
                    (height, operation, certificate),
                )

        await self._run(work)

    async def cuts(self, first: int, last: int) -> list[tuple[int, bytes, bytes]]:
        """Return (height, operation, certificate) for the cuts of `first`..`last` that are here."""

        def work() -> list[tuple[int, bytes, bytes]]:
            return [
                (height, operation, certificate)
                for height, operation, certificate in self._connection.execute(
                    "SELECT * FROM cuts WHERE height BETWEEN ? AND ? ORDER BY height", (first, last)
                )
            ]

        return await self._run(work)

    async def forget_cuts(self, upto: int) -> None:
        """Forget the cuts of all heights up to and with `upto`."""

        def work() -> None:
            with self._connection:
                self._connection.execute("DELETE FROM cuts WHERE height<=?", (upto,))

        await self._run(work)

    async def get_meta(self, key: str) -> bytes | None:
        """Return one small named value."""

        def work() -> bytes | None:
            found: bytes | None = self._one("SELECT value FROM meta WHERE key=?", (key,))
            return found

        return await self._run(work)

    async def put_meta(self, key: str, value: bytes) -> None:
        """Keep one small named value."""
        self._noted.pop(key, None)

        def work() -> None:
            with self._connection:
                self._put_meta(key, value)

        await self._run(work)

    async def close(self) -> None:
        """Finish what is queued and close the file."""

        def work() -> None:
            with self._connection:
                self._put_noted()
            self._connection.close()

        await self._run(work)
        self._thread.close()


def _row_crc(key: str, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key.encode()))


_NEW_KEY = "this key cannot vote safely any more: join the mesh again with a new directory"
