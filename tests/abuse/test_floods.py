"""Who asks too much, holds too much open or misbehaves again and again is slowed down or shut out,
and nobody else notices."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest

from shoal.node import server
from shoal.node.admission import LIMITS, Admission
from shoal.node.conduct import STRIKES_MAX
from shoal.node.identity import Identity
from shoal.node.wire import Announced
from shoal.proto import mesh_pb2
from shoal.proto.mesh_pb2_grpc import MeshStub
from tests.abuse.test_hostile_member import besieged
from tests.node.holders import HEIGHT, MESH_ID, Holder, MadeUpCheckpoint
from tests.node.mesh import found_mesh, running, until, until_rebuilt
from tests.node.tls import HOLDER, channel_to


class HolderOfALog(Holder):
    """Has a delta log of more bytes than any buffer on the way."""

    log: Path

    async def delta_log(self, height: int) -> Path | None:
        del height
        return self.log


@asynccontextmanager
async def holder(directory: Path) -> AsyncIterator[HolderOfALog]:
    one = HolderOfALog(MadeUpCheckpoint(chunks=1))
    one.log = directory / "log"
    one.log.write_bytes(bytes(32 << 20))
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


def test_a_call_whose_other_side_reads_nothing_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Admission] = []

    def admission() -> Admission:
        made.append(Admission())
        return made[-1]

    monkeypatch.setattr(server, "READ_MAX_S", 0.5)
    monkeypatch.setattr(server, "Admission", admission)

    async def story() -> None:
        async with (
            holder(tmp_path) as one,
            channel_to(one.address, HOLDER.node_id) as channel,
        ):
            request = mesh_pb2.FetchRequest(mesh_id=MESH_ID, delta_log=HEIGHT)
            patient = MeshStub(channel).Fetch(request)
            total = 0
            async for chunk in patient:
                total += len(chunk.data)
            assert total == 32 << 20, "who reads gets it all"
            await MeshStub(channel).Fetch(request).read()
            admission = made[0]  # that of the members' port
            assert admission._open["fetch"] == 1
            await until(lambda: not admission._open["fetch"], [], seconds=10)

    asyncio.run(story())


async def _closed(address: str) -> bool:
    """Connect, say nothing; whether the other side hangs up."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        # The server's own settings come first.
        while await asyncio.wait_for(reader.read(4096), 15):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    finally:
        writer.close()
    return True


def test_connections_that_say_nothing_are_closed(tmp_path: Path) -> None:
    async def story() -> None:
        async with holder(tmp_path) as one:
            assert all(await asyncio.gather(*(_closed(one.address) for _ in range(20))))

    asyncio.run(story())


def test_more_connections_than_allowed_are_turned_away_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(server.SERVER_OPTIONS)
    name = "grpc.max_allowed_incoming_connections"
    assert options[name] == server.CONNECTIONS_MAX
    monkeypatch.setattr(server, "SERVER_OPTIONS", tuple({**options, name: 8}.items()))

    async def story() -> None:
        async with holder(tmp_path) as one:
            loop = asyncio.get_running_loop()
            started = loop.time()
            tries = [asyncio.create_task(_closed(one.address)) for _ in range(30)]
            await asyncio.wait(tries, timeout=2.5)
            assert sum(each.done() for each in tries) >= 20
            assert all(await asyncio.gather(*tries))
            assert loop.time() - started < 15

    asyncio.run(story())


async def _end_of_a_silent_link(channel: grpc.aio.Channel) -> grpc.StatusCode:
    call = MeshStub(channel).Link()
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code()


def test_handshakes_without_an_end_do_not_keep_others_out(tmp_path: Path) -> None:
    async def story() -> None:
        [directory] = found_mesh(tmp_path, nodes=1)
        identity = Identity.load(directory / "identity.key")
        async with (
            running([directory], rounds=1) as (node,),
            channel_to(node.settings.node.listen, identity.node_id, identity) as channel,
        ):
            ends = [asyncio.create_task(_end_of_a_silent_link(channel)) for _ in range(50)]
            done, waiting = await asyncio.wait(ends, timeout=3)
            assert len(waiting) <= LIMITS["handshake"].open_max
            assert {task.result() for task in done} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert node.node.status().rejected["busy"] == len(done)
            assert {await task for task in waiting} == {grpc.StatusCode.DEADLINE_EXCEEDED}

    asyncio.run(story())


@pytest.mark.timeout(300)
def test_a_member_that_misbehaves_again_and_again_is_shut_out(tmp_path: Path) -> None:
    nonsense = Announced(((bytes(31), 1, bytes(32)),))

    async def story() -> None:
        async with besieged(found_mesh(tmp_path)) as (nodes, evil, me):
            victim = nodes[0]
            liar = evil.identity.node_id
            for _ in range(STRIKES_MAX):
                evil.links.send(me, nonsense)
            await until(lambda: liar not in victim.node.links.connected, nodes)
            await until(lambda: victim.node.status().rejected["cooling-off"] > 1, nodes)
            assert liar not in victim.node.links.connected
            await until(lambda: len(victim.node.links.connected) == 2, nodes)
            await until_rebuilt(nodes, victim.height + 1)

    asyncio.run(story())
