"""Many nodes keep an old checkpoint together, over real gRPC: each piece on r disks, whoever comes
and goes."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from shoal.gossip.placement import holders
from shoal.gossip.tree import CHUNK_BYTES
from shoal.node.bulk_wire import Description
from shoal.node.database import Database
from shoal.node.errors import PeerError
from shoal.node.holdings import Holdings
from shoal.node.leases import QUIET_S
from shoal.node.repair import Repair, Situation
from shoal.node.retention import Retention
from shoal.proto.mesh_pb2_grpc import MeshStub
from tests.node.holders import MESH_ID, Holder, MadeUpCheckpoint
from tests.node.tls import HOLDER, channel_to

OLD, NEWEST, COPIES = 10, 12, 3
CHECKPOINT = MadeUpCheckpoint(8, height=OLD)
DELTAS = b"the deltas of the cut" * 1000


def check_delta_log(described: Description, path: Path) -> None:
    del described
    if path.read_bytes() != DELTAS:
        raise PeerError("delta-log", "not the deltas of this cut")


class Keeper(Holder):
    """A node with a disk, that keeps what it should."""

    def __init__(self, directory: Path, number: int, *, rate: float = 1e9) -> None:
        super().__init__(CHECKPOINT)
        directory.mkdir()
        self.id = hashlib.sha256(f"keeper {number}".encode()).digest()
        self.directory = directory
        self.now = 0.0
        self.disk = Holdings(
            directory,
            anchor_bytes=len(CHECKPOINT.data),
            retention=Retention(),
            meters=self.meters,
            clock=lambda: self.now,
        )
        self.holdings: Any = self.disk
        self.database = Database(directory / "safety.db")
        self.stubs: dict[bytes, Any] = {}
        self.repair = Repair(
            me=self.id,
            mesh_id=MESH_ID,
            holdings=self.disk,
            database=self.database,
            meters=self.meters,
            situation=lambda: Situation(NEWEST, frozenset(self.stubs), COPIES),
            stub=self.stubs.get,
            certify=CHECKPOINT.certify,
            bytes_per_s=rate,
            check_delta_log=check_delta_log,
        )

    def give_whole(self) -> None:
        """It was there when the old checkpoint was new."""
        pieces = CHECKPOINT.write(self.directory / "checkpoints" / str(OLD))
        pieces.delta_log.write_bytes(DELTAS)

    def kept(self) -> frozenset[bytes]:
        return self.disk.archived(OLD).addresses()


class Shoal:
    """The keepers that are members now."""

    def __init__(self, stack: AsyncExitStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        self.keepers: dict[bytes, Keeper] = {}
        self._stubs: dict[bytes, Any] = {}

    async def join(self, number: int, *, whole: bool, **options: Any) -> Keeper:
        keeper = Keeper(self._directory / str(number), number, **options)
        if whole:
            keeper.give_whole()
        await keeper.start()
        self._stack.push_async_callback(keeper.database.close)
        self._stack.push_async_callback(keeper.stop)
        channel = channel_to(keeper.address, HOLDER.node_id)
        self._stack.push_async_callback(channel.close)
        self._stubs[keeper.id] = MeshStub(channel)
        self.keepers[keeper.id] = keeper
        return keeper

    async def leave(self, keeper: Keeper) -> None:
        del self.keepers[keeper.id], self._stubs[keeper.id]
        await keeper.stop()

    async def passes(self, count: int = 1) -> list[bool]:
        """All keepers make a pass at once, some times; what the last ones said."""
        said: list[bool] = []
        for _ in range(count):
            for keeper in self.keepers.values():
                # What was fetched in the last pass is leased no more.
                keeper.now += QUIET_S
                keeper.stubs.clear()
                keeper.stubs.update(self._stubs)
            situation = Situation(NEWEST, frozenset(self.keepers), COPIES)
            said = await asyncio.gather(
                *(keeper.repair.make_pass(situation) for keeper in self.keepers.values())
            )
        return said

    def copies(self) -> Counter[bytes]:
        return Counter(each for keeper in self.keepers.values() for each in keeper.kept())

    def as_placed(self) -> bool:
        """Whether each chunk lies on the disks of its holders, and nowhere else."""
        return all(
            {keeper.id for keeper in self.keepers.values() if address in keeper.kept()}
            == set(holders(address, self.keepers, COPIES))
            for address in CHECKPOINT.addresses
        )


@asynccontextmanager
async def shoal(directory: Path) -> AsyncIterator[Shoal]:
    async with AsyncExitStack() as stack:
        yield Shoal(stack, directory)


def test_what_all_had_whole_ends_on_three_disks_each(tmp_path: Path) -> None:
    async def story() -> None:
        async with shoal(tmp_path) as mesh:
            for number in range(6):
                await mesh.join(number, whole=True)
            assert all(await mesh.passes(2)), "nothing is left to do"
            assert mesh.as_placed()
            assert set(mesh.copies().values()) == {COPIES}
            logs = [k for k in mesh.keepers.values() if k.disk.archived(OLD).delta_log.is_file()]
            assert len(logs) == COPIES

    asyncio.run(story())


def test_a_newcomer_takes_over_its_share_and_one_who_leaves_is_made_up_for(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with shoal(tmp_path) as mesh:
            first = [await mesh.join(number, whole=True) for number in range(5)]
            await mesh.passes(2)
            newcomer = await mesh.join(5, whole=False)
            await mesh.passes(3)
            assert mesh.as_placed()
            assert newcomer.kept(), "it learned what the height was, and pulled its pieces"
            repaired = newcomer.meters.pieces["repaired"]
            logs = int(newcomer.disk.archived(OLD).delta_log.is_file())
            assert repaired == len(newcomer.kept()) + logs

            await mesh.leave(first[0])
            assert min(mesh.copies()[each] for each in CHECKPOINT.addresses) == COPIES - 1
            await mesh.passes(2)
            assert mesh.as_placed()
            logs_now = [
                k for k in mesh.keepers.values() if k.disk.archived(OLD).delta_log.is_file()
            ]
            assert len(logs_now) == COPIES

    asyncio.run(story())


def test_a_member_that_is_down_costs_nobody_else_their_copy(tmp_path: Path) -> None:
    async def story() -> None:
        async with shoal(tmp_path) as mesh:
            keepers = [await mesh.join(number, whole=True) for number in range(6)]
            dead = keepers[0]
            await dead.stop()
            dead_id = dead.id
            living = {k.id: k for k in keepers[1:]}
            for _ in range(2):
                for keeper in living.values():
                    keeper.stubs.update(mesh._stubs)
                situation = Situation(NEWEST, frozenset(mesh.keepers), COPIES)
                await asyncio.gather(*(k.repair.make_pass(situation) for k in living.values()))
            for address in CHECKPOINT.addresses:
                copies = sum(address in keeper.kept() for keeper in living.values())
                assert copies == COPIES, "who ranks next keeps it for the one that is silent"
            assert any(
                dead_id in holders(each, mesh.keepers, COPIES) for each in CHECKPOINT.addresses
            )

    asyncio.run(story())


def test_repair_keeps_to_its_budget(tmp_path: Path) -> None:
    async def story() -> None:
        async with shoal(tmp_path) as mesh:
            await mesh.join(0, whole=True)
            slow = await mesh.join(1, whole=False, rate=4.0 * CHUNK_BYTES)
            loop = asyncio.get_running_loop()
            started = loop.time()
            await mesh.passes()
            took_s = loop.time() - started
            assert slow.kept() == set(CHECKPOINT.addresses)
            # One second's worth at once, the other half of it at four chunks per second.
            due_s = (len(CHECKPOINT.data) - 4 * CHUNK_BYTES) / (4 * CHUNK_BYTES)
            assert took_s >= due_s

    asyncio.run(story())


def test_a_false_delta_log_is_refused_and_another_holder_is_asked(tmp_path: Path) -> None:
    async def story() -> None:
        async with shoal(tmp_path) as mesh:
            keepers = [await mesh.join(number, whole=True) for number in range(2)]
            first = min(keepers, key=lambda keeper: keeper.id)
            path = first.directory / "checkpoints" / str(OLD) / "deltas.bin"
            path.write_bytes(b"x" + DELTAS[1:])
            third = await mesh.join(2, whole=False)
            await mesh.passes()
            log = third.disk.archived(OLD).delta_log
            if not log.is_file():
                await mesh.passes()
            assert log.read_bytes() == DELTAS
            assert third.meters.rejected["delta-log"] == 1

    asyncio.run(story())


def test_a_liar_that_says_it_has_everything_costs_only_what_nobody_else_has(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with shoal(tmp_path) as mesh:
            honest = await mesh.join(0, whole=True)
            liar = await mesh.join(1, whole=True)
            third = await mesh.join(2, whole=False)
            for address in CHECKPOINT.addresses[:2]:
                (honest.directory / "checkpoints" / str(OLD) / "chunks" / address.hex()).unlink()

            async def lie(height: int, address: bytes) -> bytes:
                del height, address
                return bytes(CHUNK_BYTES)

            liar.disk.chunk = lie  # type: ignore[method-assign]
            await mesh.passes()
            assert third.kept() == set(CHECKPOINT.addresses[2:])
            assert third.meters.rejected["chunk-hash"] + third.meters.rejected["oversized"] >= 1

    asyncio.run(story())


def test_cuts_beyond_the_last_64_are_forgotten(tmp_path: Path) -> None:
    async def story() -> None:
        async with shoal(tmp_path) as mesh:
            keeper = await mesh.join(0, whole=False)
            for height in range(1, 101):
                await keeper.database.put_cut(height, b"operation", b"certificate")
            await keeper.repair.make_pass(Situation(100, frozenset(mesh.keepers), COPIES))
            left = [height for height, _, _ in await keeper.database.cuts(0, 1000)]
            assert left == list(range(37, 101))

    asyncio.run(story())
