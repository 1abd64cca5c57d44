"""Keeps what this node is meant to keep of the past, after every commit and change of members.

One pass: old checkpoints go into the archive, what is not retained goes away, what is wanted here
is pulled from whoever has it, and what belongs elsewhere goes once those who rank above say that
they hold it. All that is in no hurry: pulls share a budget of bytes per second, so that repair
never competes with training for the line. A pass that could not do everything is made again later.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import structlog

from shoal.consensus.errors import ConsensusError
from shoal.consensus.ledger import Ledger
from shoal.consensus.validators import Validators
from shoal.gossip.errors import GossipError
from shoal.gossip.placement import copies
from shoal.gossip.tree import CHUNK_BYTES
from shoal.node import bulk
from shoal.node.bulk_wire import Description
from shoal.node.bulk_wire import Holdings as HeldPieces
from shoal.node.config import RetentionSettings
from shoal.node.database import Database
from shoal.node.durable import settle
from shoal.node.errors import PeerError
from shoal.node.fetch import ChunkFetch
from shoal.node.fetch_plan import FetchSettings
from shoal.node.handover import leaving
from shoal.node.holdings import Holdings
from shoal.node.identity import short
from shoal.node.links import Links
from shoal.node.meters import Meters
from shoal.node.pieces import sizes_of
from shoal.node.rate import TokenBucket
from shoal.node.retention import DELTA_LOG, Piece, Plan, handed_over

if TYPE_CHECKING:
    from shoal.node.bulk import Stub

log = structlog.get_logger()

LOOK_S = 2.0
AGAIN_S = 30.0
AGAIN_MAX_S = 600.0
ASK_TIMEOUT_S = 15.0
ASKED_AT_ONCE = 8
# Committed cuts that stay in the database, for those who are behind.
CUTS_KEPT = 64
DELTA_LOG_BYTES_MAX = 1 << 32


@dataclass(frozen=True, slots=True)
class Situation:
    """What a pass depends on: the newest height here, the members and their number of copies."""

    newest: int
    members: frozenset[bytes]
    copies: int


# Raises PeerError, GossipError or ConsensusError where a file is not the delta log of a height.
CheckDeltaLog = Callable[[Description, Path], None]


class Repair:
    """Brings what lies on this disk and what should lie there together, for ever."""

    def __init__(
        self,
        *,
        me: bytes,
        mesh_id: bytes,
        holdings: Holdings,
        database: Database,
        meters: Meters,
        situation: Callable[[], Situation],
        stub: "Callable[[bytes], Stub | None]",
        certify: Callable[[Description], object],
        bytes_per_s: float,
        check_delta_log: CheckDeltaLog,
    ) -> None:
        """situation: as of now; stub: a client for a member, None where its address is unknown;
        certify: see fetch.fetch_checkpoint; bytes_per_s: budget of pulls."""
        self._me = me
        self._mesh_id = mesh_id
        self._holdings = holdings
        self._database = database
        self._meters = meters
        self._situation = situation
        self._stub = stub
        self._certify = certify
        self._check_delta_log = check_delta_log
        self._archiving = asyncio.Lock()
        self._bucket = TokenBucket(bytes_per_s)
        # One at a time of each, and time enough for the budget to be waited for.
        self._settings = FetchSettings(
            parallel=1, total=2, stall_s=10.0 + 4 * CHUNK_BYTES / bytes_per_s
        )

    async def run(self) -> None:
        """Follow the commits, and make passes: after a change, and while something is missing."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_commits())
            group.create_task(self._keep_passing())

    async def _follow_commits(self) -> None:
        # On its own: a pass may wait long for the budget, and checkpoints go on coming meanwhile.
        followed = -1
        while True:
            now = self._situation()
            if now.newest != followed:
                await self._demote(now)
                followed = now.newest
            await asyncio.sleep(LOOK_S)

    async def _keep_passing(self) -> None:
        loop = asyncio.get_running_loop()
        done: object = None
        again_at, again_s = 0.0, AGAIN_S
        while True:
            now = self._situation()
            # All that a plan depends on; most commits change none of it.
            basis = (self._holdings.retained(now.newest), now.members, now.copies)
            if basis != done:
                done, again_at, again_s = basis, 0.0, AGAIN_S
            if loop.time() >= again_at:
                complete = await self.make_pass(now)
                again_at = float("inf") if complete else loop.time() + again_s
                again_s = min(2 * again_s, AGAIN_MAX_S)
            await asyncio.sleep(LOOK_S)

    async def make_pass(self, now: Situation) -> bool:
        """Do all that can be done now; whether nothing is left to do in this situation."""
        await self._demote(now)
        for height in await asyncio.to_thread(self._holdings.undescribed, now.newest):
            await self._learn(height, now)
        plan = await self._mark(now)
        await self._holdings.let_go(plan.drop, now.newest)
        if plan.want or plan.hand_over:
            said = await self._ask_around(plan, now)
            await self._pull(plan.want, said)
            await self._hand_over(plan, said)
            plan = await self._mark(now)
        return not (plan.want or plan.hand_over or plan.drop)

    async def _demote(self, now: Situation) -> None:
        await self._database.forget_cuts(now.newest - CUTS_KEPT)
        async with self._archiving:
            await asyncio.to_thread(self._holdings.demote, now.newest)

    async def _mark(self, now: Situation) -> Plan:
        # Not while a checkpoint is half way into the archive: the rest of it is not missing.
        async with self._archiving:
            return await asyncio.to_thread(
                self._holdings.mark, now.newest, self._me, now.members, now.copies
            )

    async def _learn(self, height: int, now: Situation) -> None:
        """Find out from anybody what the checkpoint of an old height was."""
        for member in sorted(now.members - {self._me}):
            stub = self._stub(member)
            if stub is None:
                continue
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    described = await bulk.fetch_description(stub, self._mesh_id, height)
                await asyncio.to_thread(self._certify, described)
            except (TimeoutError, bulk.FetchFailed):
                continue
            except (PeerError, GossipError, ConsensusError) as error:
                self._refuse(member, error)
                continue
            await asyncio.to_thread(self._holdings.archived(height).describe, described)
            return

    def _refuse(self, member: bytes, error: PeerError | GossipError | ConsensusError) -> None:
        self._meters.rejected[error.reason] += 1
        log.warning("repair.refused", peer=short(member), why=str(error))

    async def _ask_around(self, plan: Plan, now: Situation) -> dict[int, dict[bytes, HeldPieces]]:
        """Ask all other members what they hold of the heights that are not as they should be."""
        said: dict[int, dict[bytes, HeldPieces]] = {
            piece.height: {} for piece in (*plan.want, *plan.hand_over)
        }
        manifests = await asyncio.to_thread(self._manifests, sorted(said))
        gate = asyncio.Semaphore(ASKED_AT_ONCE)

        async def ask(member: bytes) -> None:
            stub = self._stub(member)
            if stub is None:
                return
            async with gate:
                for height, addresses in manifests.items():
                    try:
                        async with asyncio.timeout(ASK_TIMEOUT_S):
                            said[height][member] = await bulk.fetch_holdings(
                                stub, self._mesh_id, height, addresses
                            )
                    except bulk.NotHeld:
                        continue
                    except (TimeoutError, bulk.FetchFailed):
                        return
                    except PeerError as error:
                        self._refuse(member, error)
                        return

        await asyncio.gather(*(ask(member) for member in now.members - {self._me}))
        return said

    def _manifests(self, heights: Iterable[int]) -> dict[int, tuple[bytes, ...]]:
        found = {height: self._holdings.archived(height).description() for height in heights}
        return {height: each.addresses for height, each in found.items() if each is not None}

    async def _pull(
        self, want: Collection[Piece], said: Mapping[int, Mapping[bytes, HeldPieces]]
    ) -> None:
        by_height: dict[int, set[bytes]] = defaultdict(set)
        for piece in want:
            by_height[piece.height].add(piece.address)
        for height, addresses in sorted(by_height.items()):
            had = {each for held in said[height].values() for each in held.addresses}
            await self._pull_chunks(height, addresses & had, said[height])
            if DELTA_LOG in addresses:
                await self._pull_delta_log(height, said[height])

    async def _pull_chunks(
        self, height: int, wanted: set[bytes], said: Mapping[bytes, HeldPieces]
    ) -> None:
        directory = self._holdings.archived(height)
        described = directory.description()
        if not wanted or described is None:
            return
        stubs = {short(member): self._stub(member) for member in said}
        sizes = {each: size for each, size in sizes_of(described).items() if each in wanted}
        before = self._meters.pieces["fetched"]
        try:
            await ChunkFetch(
                mesh_id=self._mesh_id,
                height=height,
                manifest=described.addresses,
                sizes=sizes,
                holders={name: stub for name, stub in stubs.items() if stub is not None},
                keep=directory.write,
                meters=self._meters,
                settings=self._settings,
                bucket=self._bucket,
                patient=True,
            ).run()
        except bulk.FetchFailed as error:
            log.info("repair.incomplete", height=height, why=str(error))
        pulled = self._meters.pieces["fetched"] - before
        self._meters.pieces["repaired"] += pulled
        log.info("repair.pulled", height=height, chunks=pulled, wanted=len(wanted))

    async def _pull_delta_log(self, height: int, said: Mapping[bytes, HeldPieces]) -> None:
        directory = self._holdings.archived(height)
        described = directory.description()
        partial = directory.delta_log.with_suffix(".new")
        for member, held in sorted(said.items()):
            stub = self._stub(member)
            if not held.delta_log or stub is None or described is None:
                continue
            try:
                await self._download_delta_log(stub, height, partial)
                await asyncio.to_thread(self._check_delta_log, described, partial)
                await asyncio.to_thread(settle, partial, directory.delta_log)
            except bulk.FetchFailed as error:
                log.info("repair.incomplete", height=height, why=str(error))
            except (PeerError, GossipError, ConsensusError) as error:
                self._refuse(member, error)
            else:
                self._meters.pieces["repaired"] += 1
                return
            finally:
                partial.unlink(missing_ok=True)

    async def _download_delta_log(self, stub: "Stub", height: int, partial: Path) -> None:
        loop = asyncio.get_running_loop()
        with partial.open("wb") as file:
            await bulk.fetch_delta_log(
                stub, self._mesh_id, height, file.write, limit_bytes=DELTA_LOG_BYTES_MAX
            )
            size = file.tell()
            await asyncio.to_thread(_flush, file)
        self._meters.received_bytes["bulk"] += size
        await asyncio.sleep(self._bucket.take(size, loop.time()))

    async def _hand_over(self, plan: Plan, said: Mapping[int, Mapping[bytes, HeldPieces]]) -> None:
        """Let go of what enough members that rank above say that they hold."""
        # Of this moment: who has said farewell since the plan was made counts no more.
        now = self._situation()
        gone = set()
        for piece, above in plan.hand_over.items():
            confirmed = [
                member
                for member, held in said[piece.height].items()
                if member in now.members and _has(held, piece.address)
            ]
            if handed_over(above, confirmed, now.copies):
                gone.add(piece)
        await self._holdings.let_go(gone, now.newest)


def _has(held: HeldPieces, address: bytes) -> bool:
    return held.delta_log if address == DELTA_LOG else address in held.addresses


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def repair_of_node(
    *,
    me: bytes,
    holdings: Holdings,
    database: Database,
    meters: Meters,
    links: Links,
    ledger: Callable[[], Ledger],
    validators: Callable[[], Validators],
    height: Callable[[], int],
    certify: Callable[[Description], object],
    check_delta_log: CheckDeltaLog,
    settings: RetentionSettings,
    dead: Callable[[], Collection[bytes]],
    lost: Callable[[], Collection[bytes]],
) -> Repair:
    """Return the repair of a running node; all that is called is as of now.

    dead: members that are not asked; lost: those that others stand in for, as they do for those
    who are about to leave. Nodes may differ about all of them: that makes a copy too many, never
    one too few, since a piece only goes when enough members say that they hold it.
    """

    def situation() -> Situation:
        members = frozenset(ledger().members).difference(lost(), leaving(links))
        return Situation(height(), members, copies(validators().faults))

    def stub(member: bytes) -> "Stub | None":
        known = None if member in dead() else ledger().members.get(member)
        return links.stub(member, known.address) if known is not None else None

    return Repair(
        me=me,
        mesh_id=validators().mesh_id,
        holdings=holdings,
        database=database,
        meters=meters,
        situation=situation,
        stub=stub,
        certify=certify,
        bytes_per_s=settings.repair_bytes_per_s,
        check_delta_log=check_delta_log,
    )
