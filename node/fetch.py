"""Fetching a checkpoint from several holders at once: the hands of fetch_plan.py.

First everybody is asked what its newest checkpoint is; the newest that holds together is taken.
Then its chunks are pulled from whoever has them, each checked against its address, which the
certified root covers, before it is kept. What is here already lies in `.<height>.part`, chunk by
chunk: a fetch that was cut off goes on from there. No more than a few chunks are in memory.
"""

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from shoal.consensus.errors import ConsensusError
from shoal.gossip.chunks import chunk_address
from shoal.gossip.errors import GossipError
from shoal.node import bulk
from shoal.node.bulk_wire import Description
from shoal.node.errors import PeerError
from shoal.node.fetch_plan import Ask, FetchPlan, FetchSettings
from shoal.node.meters import Meters
from shoal.node.pieces import PieceDirectory, sizes_of
from shoal.node.progress import tell
from shoal.node.rate import TokenBucket

if TYPE_CHECKING:
    from shoal.node.bulk import Stub

    Holders = Mapping[str, Stub]

log = structlog.get_logger()

# A part of a checkpoint is gone on with only while it is not much older than the newest one.
RESUME_BEHIND = 8
DESCRIBE_TIMEOUT_S = 15.0
HOLDINGS_TRIES = 3
HOLDINGS_RETRY_S = 0.5
NEWEST = 0


class ChunkFetch:
    """One fetch of some chunks of one height; make it, `run` it, forget it."""

    def __init__(
        self,
        *,
        mesh_id: bytes,
        height: int,
        manifest: Sequence[bytes],
        sizes: Mapping[bytes, int],
        holders: "Holders",
        keep: Callable[[bytes, bytes], None],
        meters: Meters,
        settings: FetchSettings,
        bucket: TokenBucket | None = None,
        patient: bool = False,
    ) -> None:
        """manifest: all addresses of the height, in order; sizes: the bytes of each chunk to
        fetch, by address; holders: who may have them, by a name for the log; keep: called in a
        thread with an address and its checked bytes; bucket: spends bytes before they are asked
        for, None for no limit; patient: fetch what can be had before saying what cannot."""
        self._mesh_id = mesh_id
        self._height = height
        self._manifest = manifest
        self._sizes = sizes
        self._holders = holders
        self._keep = keep
        self._meters = meters
        self._bucket = bucket
        self._patient = patient
        self._lost: list[bytes] = []
        self._plan = FetchPlan(sizes, settings)
        self._asking: set[asyncio.Task[None]] = set()
        self._flights: dict[Ask, asyncio.Task[None]] = {}
        self._called_off: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Fetch everything; raises FetchFailed naming a chunk that cannot be had."""
        loop = asyncio.get_running_loop()
        self._asking = {
            loop.create_task(self._learn_holdings(name), name=f"holdings {name}")
            for name in self._holders
        }
        try:
            while not self._plan.done:
                self._changed.clear()
                now = loop.time()
                tell(
                    f"fetching checkpoint {self._height}, chunks",
                    len(self._sizes) - self._plan.missing,
                    len(self._sizes),
                )
                self._call_off(self._plan.stalled(now))
                for ask in self._plan.asks(now):
                    task = loop.create_task(self._pull(ask), name=f"chunk from {ask.holder}")
                    self._flights[ask] = task
                self._require_hope()
                if self._plan.done:
                    break
                await self._wait(self._plan.wake_at(now))
                self._raise_bugs()
        finally:
            tasks = [*self._asking, *self._flights.values(), *self._called_off]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._lost:
            raise self._failure(self._lost[0])

    async def _wait(self, until: float | None) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(max(until, loop.time() + 0.001) if until else None):
                await self._changed.wait()
        except TimeoutError:
            return

    def _raise_bugs(self) -> None:
        """What a task did not expect is our fault and ends the fetch."""
        for task in [*self._asking, *self._flights.values()]:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error
        self._flights = {ask: task for ask, task in self._flights.items() if not task.done()}
        self._called_off = [task for task in self._called_off if not task.done()]

    def _require_hope(self) -> None:
        if any(not task.done() for task in self._asking):
            return
        while (lost := self._plan.nobody_has()) is not None:
            if not self._patient:
                raise self._failure(lost)
            self._lost.append(lost)
            self._plan.forget(lost)

    def _failure(self, lost: bytes) -> bulk.FetchFailed:
        gone = "; ".join(f"{name}: {why}" for name, why in sorted(self._plan.gone().items()))
        return bulk.FetchFailed(
            f"nobody has chunk {self._manifest.index(lost)} ({lost.hex()[:16]}) of checkpoint "
            f"{self._height}: {len(self._holders)} asked"
            + (f", {len(self._plan.gone())} given up ({gone})" if gone else "")
        )

    async def _learn_holdings(self, name: str) -> None:
        """Ask what somebody has; one that cannot be asked has nothing."""
        try:
            for attempt in range(HOLDINGS_TRIES):
                await asyncio.sleep(attempt * HOLDINGS_RETRY_S)
                try:
                    held = await bulk.fetch_holdings(
                        self._holders[name], self._mesh_id, self._height, self._manifest
                    )
                except bulk.NotHeld:
                    return
                except bulk.FetchFailed as error:
                    log.debug("holdings.failed", holder=name, why=str(error))
                else:
                    self._plan.holder(name, held.addresses)
                    return
        except PeerError as error:
            self._meters.rejected[error.reason] += 1
            log.warning("holdings.refused", holder=name, why=str(error))
        finally:
            self._changed.set()

    async def _pull(self, ask: Ask) -> None:
        name, address = ask
        loop = asyncio.get_running_loop()
        try:
            await self._download(name, address)
        except bulk.NotHeld:
            self._plan.lacks(name, address)
        except bulk.FetchFailed as error:
            self._plan.failed(name, address, loop.time(), str(error))
        except PeerError as error:
            self._meters.rejected[error.reason] += 1
            log.warning(
                "chunk.refused",
                holder=name,
                height=self._height,
                chunk=self._manifest.index(address),
                why=str(error),
            )
            self._call_off(self._plan.lied(name, str(error)))
        else:
            self._meters.pieces["fetched"] += 1
            self._call_off(self._plan.arrived(name, address, loop.time()))
        finally:
            self._changed.set()

    async def _download(self, name: str, address: bytes) -> None:
        size = self._sizes[address]
        if self._bucket is not None:
            await asyncio.sleep(self._bucket.take(size, asyncio.get_running_loop().time()))
        stub = self._holders[name]
        data = await bulk.fetch_chunk(stub, self._mesh_id, self._height, address, size=size)
        self._meters.received_bytes["bulk"] += len(data)

        def check_and_keep() -> None:
            if chunk_address(data) != address:
                raise PeerError("chunk-hash", "its bytes do not hash to its address")
            self._keep(address, data)

        await asyncio.to_thread(check_and_keep)

    def _call_off(self, asks: Sequence[Ask]) -> None:
        for ask in asks:
            task = self._flights.pop(ask, None)
            if task is not None and task is not asyncio.current_task():
                task.cancel()
                self._called_off.append(task)


async def fetch_checkpoint(
    *,
    mesh_id: bytes,
    holders: "Holders",
    certify: Callable[[Description], object],
    directory: Path,
    anchor_bytes: int,
    above: int,
    meters: Meters,
    settings: FetchSettings | None = None,
) -> PieceDirectory | None:
    """Fetch the newest checkpoint that `holders` have, in pieces, into `.<height>.part`.

    certify: called in a thread, raises PeerError, GossipError or ConsensusError for a description
    that is not certified (its addresses included); directory: where checkpoints lie;
    anchor_bytes: the length of an anchor of this mesh; above: only heights above this are of use.

    Returns the directory with every chunk in it, None where nobody has a newer checkpoint. Raises
    FetchFailed where none of `holders` answers, or naming the chunk that none of them has.
    """
    parts = _parts(directory)
    found = await _describe(mesh_id, holders, NEWEST, certify, meters)
    offers = {each.height: each for each in found.values() if each.height > above}
    if not offers:
        return None
    newest = max(offers)
    for height in sorted(parts, reverse=True):
        if max(above, newest - RESUME_BEHIND - 1) < height < newest and height not in offers:
            again = await _describe(mesh_id, holders, height, certify, meters, required=False)
            offers.update((each.height, each) for each in again.values())
    chosen = offers[max((height for height in parts if height in offers), default=newest)]
    for height in parts:
        if height < chosen.height:
            await asyncio.to_thread(shutil.rmtree, parts[height], ignore_errors=True)
    part = PieceDirectory(_part_path(directory, chosen.height), chosen.height, anchor_bytes)
    sizes = sizes_of(chosen)
    here = await asyncio.to_thread(_prepare, part, chosen, sizes)
    log.info(
        "checkpoint.fetching",
        height=chosen.height,
        chunks=len(sizes),
        here=len(here),
        holders=len(holders),
    )
    fetch = ChunkFetch(
        mesh_id=mesh_id,
        height=chosen.height,
        manifest=chosen.addresses,
        sizes={address: size for address, size in sizes.items() if address not in here},
        holders=holders,
        keep=part.write,
        meters=meters,
        settings=settings or FetchSettings(),
    )
    await fetch.run()
    return part


def _part_path(directory: Path, height: int) -> Path:
    return directory / f".{height}.part"


def _parts(directory: Path) -> dict[int, Path]:
    """The heights of which parts are here."""
    if not directory.is_dir():
        return {}
    names = {
        entry.name.removeprefix(".").removesuffix(".part"): entry
        for entry in directory.glob(".*.part")
    }
    return {int(name): entry for name, entry in names.items() if name.isdecimal()}


def _prepare(
    part: PieceDirectory, described: Description, sizes: Mapping[bytes, int]
) -> frozenset[bytes]:
    """Make the directory of a part, or check what an earlier fetch left in it."""
    if part.description() != described:
        # Written before the first chunk; another certificate over the same anchor is welcome.
        part.describe(described)
    return part.verified(sizes)


async def _describe(
    mesh_id: bytes,
    holders: "Holders",
    height: int,
    certify: Callable[[Description], object],
    meters: Meters,
    *,
    required: bool = True,
) -> dict[str, Description]:
    """Ask everybody at once what the checkpoint of a height is; returns what holds together."""
    failures: list[str] = []

    async def ask(name: str) -> Description | None:
        try:
            async with asyncio.timeout(DESCRIBE_TIMEOUT_S):
                described = await bulk.fetch_description(holders[name], mesh_id, height)
            await asyncio.to_thread(certify, described)
        except bulk.NotHeld:
            return None
        except TimeoutError:
            failures.append(f"{name}: no answer in {DESCRIBE_TIMEOUT_S:.0f} s")
        except bulk.FetchFailed as error:
            failures.append(f"{name}: {error}")
        except (PeerError, GossipError, ConsensusError) as error:
            meters.rejected[error.reason] += 1
            log.warning("checkpoint.refused", holder=name, why=str(error))
            failures.append(f"{name}: {error}")
        else:
            return described
        return None

    answers = await asyncio.gather(*(ask(name) for name in holders))
    found = {name: each for name, each in zip(holders, answers, strict=True) if each is not None}
    if required and not found and len(failures) == len(holders):
        raise bulk.FetchFailed("; ".join(failures) or "there is nobody to ask")
    return found
