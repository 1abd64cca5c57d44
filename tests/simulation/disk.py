"""The disk under one simulated node: a table of rows, transactions, and what goes wrong with them.

An honest disk keeps what it was told to keep: a transaction is there after a crash as a whole or
not at all, and entirely once `commit` has returned. It may refuse (no space, a failing fsync),
and it may rot: every row carries a CRC, so a flipped bit is noticed when the rows are read. Two
lies can be planted to see that the simulator notices: writes that are reported as durable and
lost at a crash, and transactions of which a crash leaves one half.
"""

import random
import zlib
from collections.abc import Iterable

from tests.simulation.plan import Planted

Rows = Iterable[tuple[str, bytes | None]]
# How many transactions a lying disk holds back at most before it writes them after all.
HELD_BACK = 8


class DiskError(OSError):
    """The transaction was refused. A process that sees this must end: see node/database.py."""


class DamagedRows(Exception):
    """A row is not what was written: nobody may vote from these rows again."""


class Disk:
    """`rows` is what reading returns now; `load` is what a new process finds."""

    def __init__(
        self,
        rng: random.Random,
        *,
        error_rate: float = 0.0,
        planted: tuple[Planted, ...] = (),
    ) -> None:
        self.rows: dict[str, bytes] = {}
        self.lost = 0
        self.rotted = False
        self._rng = rng
        self._error_rate = error_rate
        self._loses_writes = "lost-writes" in planted
        self._tears = "torn-writes" in planted
        self._checksums: dict[str, int] = {}
        # Only where writes get lost: the table as it was after the last write that was not held.
        self._safe: dict[str, bytes] = {}
        self._held = 0

    def quiet(self) -> None:
        """From here on nothing is refused any more."""
        self._error_rate = 0.0

    def commit(self, rows: Rows) -> None:
        """One transaction, durable on return; raises DiskError."""
        if self._error_rate and self._rng.random() < self._error_rate:
            # After a failed fsync nobody knows whether the transaction is there; without space
            # it is not.
            if self._rng.random() < 0.5:
                self._write(rows)
                raise DiskError("fsync: input/output error")
            raise DiskError("no space left on device")
        self._write(rows)
        if self._loses_writes:
            self._held += 1
            if self._rng.random() * HELD_BACK < 1:
                self._safe, self._held = dict(self.rows), 0

    def interrupted(self, rows: Rows) -> None:
        """The machine stops in the middle of this transaction: nothing of it is there."""
        if self._tears:
            pieces = list(rows)
            self._write(pieces[: self._rng.randint(0, len(pieces))])

    def crash(self) -> None:
        """The process is gone, and on a lying disk its last transactions are as well."""
        if self._loses_writes and self._held:
            self.lost += self._held
            self.rows, self._held = dict(self._safe), 0
            self._checksums = {key: _checksum(key, row) for key, row in self.rows.items()}

    def flip_bit(self) -> bool:
        """One bit of one row turns over; False when there is no row yet."""
        keys = sorted(key for key, row in self.rows.items() if row)
        if not keys:
            return False
        key = self._rng.choice(keys)
        broken = bytearray(self.rows[key])
        broken[self._rng.randrange(len(broken))] ^= 1 << self._rng.randrange(8)
        self.rows[key] = bytes(broken)
        self.rotted = True
        return True

    def load(self) -> dict[str, bytes]:
        """Every row, checked as node/database.py checks it; raises DamagedRows."""
        for key, row in self.rows.items():
            if self._checksums[key] != _checksum(key, row):
                raise DamagedRows(key)
        return dict(self.rows)

    def _write(self, rows: Rows) -> None:
        for key, value in rows:
            if value is None:
                self.rows.pop(key, None)
                self._checksums.pop(key, None)
            else:
                self.rows[key] = value
                self._checksums[key] = _checksum(key, value)


def _checksum(key: str, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key.encode()))
