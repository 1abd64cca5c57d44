"""One member asks another whether it can be reached: what is looked at, how often, and for whom."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from shoal.node.channels import open_channel
from shoal.node.errors import PeerError
from shoal.node.identity import Identity
from shoal.node.look import NothingSeen, Sight, sight_of, who_is_at
from shoal.node.look_back import LOOK_EVERY_S, LOOKS_AT_ONCE_MAX, LOOKS_OPEN_MAX, Lookout
from shoal.node.look_wire import (
    BACK,
    LOOKS,
    LookedBack,
    ask_to_look_back,
    make_looked_back,
    parse_looked_back,
)
from shoal.node.wire import PROTOCOL_VERSION
from tests.abuse.tls_table import (
    MEMBER,
    NEWCOMER,
    OTHER,
    OWN,
    STRANGER,
    Place,
    leaf_of,
    place,
    pretender,
)
from tests.node.played import played, played_plainly

HOUR_S = 3600.0


class Plain(asyncio.Protocol):
    """Something that listens and is no node: it says this at the first byte, or never a word."""

    def __init__(self, met: list[asyncio.BaseTransport], answer: bytes | None) -> None:
        self._met = met
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._met.append(transport)

    def data_received(self, data: bytes) -> None:
        # uvloop's transports are no subclasses of asyncio.Transport.
        transport: Any = self._met[-1]
        if self._answer is not None:
            transport.write(self._answer)
            transport.close()


@asynccontextmanager
async def plain_server(
    answer: bytes | None = None,
) -> AsyncIterator[tuple[str, list[asyncio.BaseTransport]]]:
    """Gives its address, and who has connected."""
    met: list[asyncio.BaseTransport] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Plain(met, answer), "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", met
    finally:
        server.close()
        for transport in met:
            transport.close()
        await server.wait_closed()


async def ask(here: Place, who: Identity = MEMBER) -> LookedBack:
    async with open_channel(here.address, OWN.node_id, leaf_of(who)) as channel:
        return await ask_to_look_back(channel, 8.0)


async def refusal(here: Place, who: Identity) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(here, who)
    return refused.value.code()


def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@played
async def test_a_member_that_answers_at_its_address_is_seen_there() -> None:
    async with place() as here, pretender(leaf_of(MEMBER)) as address:
        here.ledger[MEMBER.node_id] = address
        before = time.time()
        looked = await ask(here)
        assert (looked.outcome, looked.address) == (Sight.ANSWERS, address)
        assert looked.protocol == PROTOCOL_VERSION
        assert before - 1 <= looked.received <= looked.answered <= time.time() + 1


@pytest.mark.parametrize("play", [played, played_plainly])
def test_what_is_wrong_with_an_address_is_told_apart(play: Callable[[Any], Any]) -> None:
    play(_every_sight)()


async def _every_sight() -> None:
    async with (
        pretender(leaf_of(OTHER)) as others,
        pretender(leaf_of(MEMBER, at=1.7e9)) as expired,
        plain_server(b"220 mail.example ESMTP\r\n") as (mail, _),
        plain_server() as (silent, _),
    ):
        expected = {
            others: Sight.SOMEBODY_ELSE,
            expired: Sight.OUT_OF_DATE,
            mail: Sight.NO_TLS,
            silent: Sight.SILENT,
            unused_address(): Sight.REFUSED,
            "nowhere.invalid:7400": Sight.UNKNOWN_NAME,
            "not an address": Sight.UNKNOWN_NAME,
        }
        seen = {a: await sight_of(a, MEMBER.node_id, time.time(), 1.0) for a in expected}
        assert seen == expected


@played
async def test_the_leaf_of_another_node_names_it_whatever_its_dates() -> None:
    async with pretender(leaf_of(OTHER, at=1.7e9)) as address:
        assert (await who_is_at(address, 2.0)).node_id == OTHER.node_id
    with pytest.raises(NothingSeen) as nothing:
        await who_is_at(address, 2.0)
    assert nothing.value.sight is Sight.REFUSED


@played
async def test_only_the_address_of_the_ledger_is_ever_connected_to() -> None:
    """A caller that tries to name another address is refused, and nobody connects there."""
    async with place() as here, plain_server() as (victim, met):
        here.ledger[MEMBER.node_id] = unused_address()
        named = b"\x0a" + bytes([len(victim)]) + victim.encode()
        async with open_channel(here.address, OWN.node_id, leaf_of(MEMBER)) as channel:
            call: Any = channel.unary_unary(BACK)
            for request in (named, b"\x12" + named[1:], b"\x08\x01"):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(request, timeout=5)
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            looked = await ask_to_look_back(channel, 8.0)
        assert looked.outcome == Sight.REFUSED
        assert looked.address == here.ledger[MEMBER.node_id]
        assert here.refused("unknown-field") + here.refused("oversized") == 3
        assert not met


@played
async def test_a_member_that_asks_too_often_gets_the_time_and_no_look() -> None:
    async with place() as here, plain_server(b"") as (address, met):
        here.ledger |= {MEMBER.node_id: address, OTHER.node_id: address}
        outcomes = [(await ask(here)).outcome for _ in range(LOOKS_AT_ONCE_MAX + 2)]
        assert outcomes[-2:] == [Sight.NOT_NOW] * 2
        assert Sight.NOT_NOW not in outcomes[:-2]
        assert len(met) == LOOKS_AT_ONCE_MAX
        assert abs((await ask(here)).received - time.time()) < 2
        assert (await ask(here, OTHER)).outcome != Sight.NOT_NOW, "another member has its own turn"


@played
async def test_turns_come_back_with_time_and_all_together_have_a_bound() -> None:
    async with plain_server() as (address, met):
        lookout = Lookout(lambda peer: address, time.time)
        looks = [asyncio.create_task(lookout.look(bytes([i]) * 32, 0.0)) for i in range(12)]
        await asyncio.sleep(0.3)
        assert len(met) == LOOKS_OPEN_MAX
        seen = [sight for sight, _ in await asyncio.gather(*looks)]
        assert seen.count(Sight.SILENT) == LOOKS_OPEN_MAX
        assert seen.count(Sight.NOT_NOW) == 12 - LOOKS_OPEN_MAX
    address = unused_address()
    lookout = Lookout(lambda peer: address, time.time)
    peer = MEMBER.node_id
    for _ in range(LOOKS_AT_ONCE_MAX):
        assert (await lookout.look(peer, 100.0))[0] is Sight.REFUSED
    assert (await lookout.look(peer, 100.0))[0] is Sight.NOT_NOW
    assert (await lookout.look(peer, 101.0 + LOOK_EVERY_S))[0] is Sight.REFUSED
    many = [(await lookout.look(bytes([i]) * 32, 200.0))[0] for i in range(20)]
    assert many.count(Sight.REFUSED) == 2 * LOOKS_OPEN_MAX, "sixteen at once of all members"


@played
async def test_who_is_no_member_is_refused() -> None:
    async with place() as here:
        assert await refusal(here, STRANGER) is grpc.StatusCode.UNAVAILABLE
        here.remove(MEMBER)
        assert await refusal(here, MEMBER) is grpc.StatusCode.PERMISSION_DENIED
        assert await refusal(here, OWN) is grpc.StatusCode.PERMISSION_DENIED
        assert here.refused("own-key") == 1


@played
async def test_a_newcomer_and_this_machine_find_no_such_service() -> None:
    async with place() as here:
        async with open_channel(here.join, OWN.node_id, None) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask_to_look_back(channel, 5.0)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        async with grpc.aio.insecure_channel(here.inspect) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask_to_look_back(channel, 5.0)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


@played
async def test_who_is_heard_and_not_in_the_ledger_is_not_looked_at() -> None:
    async with place() as here:
        here.members.add(NEWCOMER.node_id)
        here.links.trust.refresh()
        async with open_channel(here.address, OWN.node_id, leaf_of(NEWCOMER)) as channel:
            looked = await ask_to_look_back(channel, 5.0)
        assert (looked.outcome, looked.address) == (Sight.NOT_LISTED, "")


@played
async def test_the_time_told_is_that_of_the_node_asked() -> None:
    async with place() as here:
        here.clock.ahead_s = 900.0
        assert 899 < (await ask(here)).received - time.time() < 905


def test_answers_are_checked_before_they_are_believed() -> None:
    good = LookedBack("answers", "a:1", 4, "0.1.0", 1.5, 2.5)
    assert parse_looked_back(make_looked_back(good)) == good
    for bad in (
        LookedBack("a" * 65, "", 4, "", 1.0, 1.0),
        LookedBack("answers", "\x1b[2J", 4, "", 1.0, 1.0),
        LookedBack("answers", "a" * 256, 4, "", 1.0, 1.0),
        LookedBack("answers", "", 4, "", 2.0**43, 1.0),
    ):
        with pytest.raises(PeerError, match="malformed-message"):
            parse_looked_back(make_looked_back(bad))
    with pytest.raises(PeerError, match="unknown-field"):
        LOOKS.read(b"\x08\x01")
