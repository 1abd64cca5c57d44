"""The past as this node keeps it and serves it: whole checkpoints, and old ones in pieces.

    checkpoints/<height>/   the newest, whole
    archive/<height>/       older ones, in pieces (pieces.py); what a height is stands there entire

What may go is marked by a plan (retention.py) and swept unless it is leased (leases.py): somebody
may be in the middle of fetching it. Reads never fail because of a sweep, they find nothing.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

import structlog

from shoal.node.bulk_wire import Description
from shoal.node.bulk_wire import Holdings as HeldPieces
from shoal.node.config import Settings
from shoal.node.leases import WHOLE, Leases
from shoal.node.meters import Meters
from shoal.node.pieces import PieceDirectory
from shoal.node.retention import DELTA_LOG, Piece, Plan, Retention, plan_holdings

log = structlog.get_logger()

# Whole checkpoints that stay beyond their time because somebody fetches them, the newest first:
# a bound on the disk that strangers can fill by asking.
LEASED_MAX = 4

T = TypeVar("T")


class Holdings:
    """What lies in a node's directory of all heights, and what happens to it."""

    def __init__(
        self,
        directory: Path,
        *,
        anchor_bytes: int,
        retention: Retention,
        meters: Meters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """directory: the node's; anchor_bytes: the length of an anchor of this mesh."""
        self._whole = directory / "checkpoints"
        self._archive = directory / "archive"
        self._anchor_bytes = anchor_bytes
        self._retention = retention
        self._meters = meters
        self._clock = clock
        self._leases = Leases()
        self._going: set[Piece] = set()

    # --- reading --------------------------------------------------------------------------------

    def whole_heights(self) -> list[int]:
        """Return the heights that are here whole, ascending."""
        return _heights(self._whole)

    def archived_heights(self) -> list[int]:
        """Return the heights of which pieces are here, ascending."""
        return _heights(self._archive)

    def archived(self, height: int) -> PieceDirectory:
        """Return where the pieces of an old height lie, or would."""
        return PieceDirectory(self._archive / str(height), height, self._anchor_bytes)

    def _whole_one(self, height: int) -> PieceDirectory:
        return PieceDirectory(self._whole / str(height), height, self._anchor_bytes)

    def _places(self, height: int) -> tuple[PieceDirectory, PieceDirectory]:
        """Where a height may lie. In the order in which `demote` moves it: what a reader misses
        in the first because it goes at that moment, it finds in the second."""
        return self._whole_one(height), self.archived(height)

    def _lease(self, height: int, address: bytes) -> None:
        self._leases.take(height, address, self._clock())

    # --- serving (server.Serving) -----------------------------------------------------------------

    async def describe(self, height: int) -> Description | None:
        """Return what the checkpoint of a height is (0: the newest whole one), or None."""

        def work() -> Description | None:
            wanted = height or max(self.whole_heights(), default=0)
            return _first(place.description() for place in self._places(wanted))

        described = await asyncio.to_thread(work)
        if described is not None:
            self._lease(described.height, WHOLE)
        return described

    async def chunk(self, height: int, address: bytes) -> bytes | None:
        """Return one chunk, or None where it is not here."""
        self._lease(height, address)

        def work() -> bytes | None:
            return _first(place.read(address) for place in self._places(height))

        data = await asyncio.to_thread(work)
        if data is not None:
            self._meters.pieces["served"] += 1
        return data

    async def delta_log(self, height: int) -> Path | None:
        """Return where a height's delta log lies, or None where it is not here."""
        self._lease(height, DELTA_LOG)
        return await asyncio.to_thread(self._delta_log, height)

    def _delta_log(self, height: int) -> Path | None:
        logs = (place.delta_log for place in self._places(height))
        return next((log for log in logs if log.is_file()), None)

    async def held(self, height: int) -> tuple[HeldPieces, tuple[bytes, ...]] | None:
        """Return which pieces of a height are here, and all its addresses; None: unknown height."""

        def work() -> tuple[HeldPieces, tuple[bytes, ...]] | None:
            for place in self._places(height):
                # Before the description: that it is still there says that these were.
                here = place.addresses().difference(going)
                described = place.description()
                if described is not None:
                    log_is_here = self._delta_log(height) is not None and DELTA_LOG not in going
                    return HeldPieces(here, log_is_here), described.addresses
            return None

        # Of before: what goes while this looks may still be seen by it.
        going = {piece.address for piece in self._going if piece.height == height}
        return await asyncio.to_thread(work)

    async def let_go(self, pieces: Collection[Piece], newest: int) -> None:
        """Sweep pieces; from the moment of the call nobody is told that they are here."""
        self._going.update(pieces)
        try:
            await asyncio.to_thread(self.sweep, pieces, newest)
        finally:
            self._going.difference_update(pieces)

    # --- mark and sweep (blocks: call it from a thread) -------------------------------------------

    def demote(self, newest: int) -> None:
        """Take whole checkpoints that are no longer new into the archive, or away.

        Nothing is lost by it that anybody is meant to keep: all pieces of a retained height stay
        in the archive until those who are to keep them say that they do.
        """
        for folder in (self._whole, self._archive):
            for doomed in folder.glob(".*.gone"):
                shutil.rmtree(doomed, ignore_errors=True)
        retained = set(self.retained(newest))
        leased = []
        for height in self.whole_heights():
            if height >= self._retention.whole_from(newest):
                continue
            if height in retained:
                self._to_archive(height)
            elif self._leases.held(height, WHOLE, self._clock()):
                leased.append(height)
                continue
            self._remove(self._whole / str(height))
        for height in leased[:-LEASED_MAX]:
            self._remove(self._whole / str(height))

    def _to_archive(self, height: int) -> None:
        source = self._whole_one(height)
        described = source.description()
        if described is None:
            return
        target = self.archived(height)
        target.describe(described)
        for address in source.addresses() - target.addresses():
            data = source.read(address)
            if data is not None:
                target.write(address, data)
        if source.delta_log.is_file():
            source.delta_log.replace(target.delta_log)
        log.info("checkpoint.archived", height=height, chunks=len(described.addresses))

    def retained(self, newest: int) -> list[int]:
        """Return the heights that are kept in pieces when `newest` is committed, ascending."""
        return self._retention.archived(newest)

    def mark(self, newest: int, me: bytes, members: Collection[bytes], r: int) -> Plan:
        """Plan what of the archive to keep, drop, want and hand over."""
        retained = self.retained(newest)
        manifests, held = self.pieces({*self.archived_heights(), *retained})
        pinned = self._retention.pinned
        return plan_holdings(me, members, r, retained, manifests, held, pinned)

    def pieces(self, heights: Collection[int]) -> tuple[dict[int, tuple[bytes, ...]], set[Piece]]:
        """Of old heights: the chunk addresses of those that are known here, and what lies here."""
        manifests, held = {}, set()
        for height in heights:
            directory = self.archived(height)
            described = directory.description()
            if described is not None:
                manifests[height] = described.addresses
            held |= {Piece(height, address) for address in directory.addresses()}
            if directory.delta_log.is_file():
                held.add(Piece(height, DELTA_LOG))
        return manifests, held

    def undescribed(self, newest: int) -> list[int]:
        """Return the retained heights of which it is not even known here what they are."""
        return [
            height
            for height in self.retained(newest)
            if self.archived(height).description() is None
        ]

    def sweep(self, pieces: Collection[Piece], newest: int) -> None:
        """Remove pieces, and old heights of which nothing is retained; leased ones stay."""
        now = self._clock()
        for piece in pieces:
            if self._leases.held(piece.height, piece.address, now):
                continue
            directory = self.archived(piece.height)
            if piece.address == DELTA_LOG:
                directory.delta_log.unlink(missing_ok=True)
            else:
                directory.remove(piece.address)
            self._meters.pieces["dropped"] += 1
        for height in set(self.archived_heights()) - set(self.retained(newest)):
            directory = self.archived(height)
            if not directory.addresses() and not directory.delta_log.is_file():
                self._remove(directory.path)

    def _remove(self, path: Path) -> None:
        """Take a directory away under a name that nobody looks for, then its files."""
        doomed = path.with_name(f".{path.name}.gone")
        shutil.rmtree(doomed, ignore_errors=True)
        try:
            path.rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)


def retention_of(settings: Settings) -> Retention:
    """What a node with these settings keeps of the past."""
    wanted = settings.retention
    return Retention(
        keep_whole=wanted.keep_whole,
        keep_every=wanted.keep_every,
        archived_max=wanted.archived_max,
        pinned=frozenset(wanted.pinned),
    )


def open_holdings(settings: Settings, *, anchor_bytes: int, meters: Meters) -> Holdings:
    """Return what lies in the directory of a node with these settings."""
    return Holdings(
        settings.node.directory,
        anchor_bytes=anchor_bytes,
        retention=retention_of(settings),
        meters=meters,
    )


def _first(found: Iterable[T | None]) -> T | None:
    return next((each for each in found if each is not None), None)


def _heights(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(
        int(entry.name)
        for entry in directory.iterdir()
        if entry.is_dir() and entry.name.isascii() and entry.name.isdecimal()
    )
