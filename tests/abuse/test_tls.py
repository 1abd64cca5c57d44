"""Who gets in and who does not: one row a case, with real servers over loopback."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from shoal.node.bulk_wire import WantContacts, WantDelta, make_fetch
from shoal.node.certificates import Leaf, Presented, host_name
from shoal.node.channels import open_channel
from shoal.node.first_use import who_answers
from shoal.node.gate import Gate
from shoal.proto.mesh_pb2 import Chunk, FetchRequest, JoinRequest
from shoal.proto.mesh_pb2_grpc import MeshStub
from tests.abuse.forged_leaves import RawClient, forge
from tests.abuse.tls_table import (
    MEMBER,
    MESH_ID,
    NEWCOMER,
    OTHER,
    OWN,
    STATUS,
    STRANGER,
    Place,
    ask,
    call,
    leaf_of,
    place,
    pretender,
)

OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
DENIED = grpc.StatusCode.PERMISSION_DENIED
HOUR_S = 3600.0

Case: TypeAlias = Callable[[Place], Awaitable[None]]


def shows(make: Callable[[], Leaf | None], expected: grpc.StatusCode) -> Case:
    """A call with the leaf that `make` makes ends like this."""

    async def case(here: Place) -> None:
        assert await call(here, make()) is expected
        assert here.asked == (expected is OK)

    return case


async def _pinned_to_somebody_else(here: Place) -> None:
    assert await call(here, leaf_of(MEMBER), pin=OTHER.node_id) is UNAVAILABLE


async def _in_the_clear(here: Place) -> None:
    async with grpc.aio.insecure_channel(here.address) as channel:
        assert await ask(channel) is UNAVAILABLE


async def _joined_later(here: Place) -> None:
    assert await call(here, leaf_of(NEWCOMER)) is UNAVAILABLE
    here.members.add(NEWCOMER.node_id)
    here.links.trust.refresh()
    assert await call(here, leaf_of(NEWCOMER)) is OK


async def _removed(here: Place) -> None:
    assert await call(here, leaf_of(MEMBER)) is OK
    here.remove(MEMBER)
    here.links.trust.refresh()
    assert await call(here, leaf_of(MEMBER)) is UNAVAILABLE
    assert await call(here, leaf_of(OTHER)) is OK


async def _removed_with_a_connection(here: Place) -> None:
    async with open_channel(here.address, OWN.node_id, leaf_of(MEMBER)) as channel:
        assert await ask(channel) is OK
        here.remove(MEMBER)
        # At once, whatever the handshake of this connection said and however lately.
        assert await ask(channel) is DENIED
        assert here.refused("not-a-member") == 1


async def _resumed(here: Place) -> None:
    client = RawClient(leaf_of(MEMBER))
    for resumed in (False, True):
        answer = await asyncio.to_thread(client.call, here.address, STATUS)
        assert (answer.version, answer.resumed) == ("TLSv1.3", resumed)
    assert here.asked == 2


async def _resumed_after_removal(here: Place) -> None:
    client = RawClient(leaf_of(MEMBER))
    await asyncio.to_thread(client.call, here.address, STATUS)
    here.remove(MEMBER)
    here.links.trust.refresh()
    answer = await asyncio.to_thread(client.call, here.address, STATUS)
    assert not answer.resumed
    assert here.asked == 1


async def _resumed_just_after_removal(here: Place) -> None:
    """Before the transport has heard of it the session is resumed, and the call refused."""
    client = RawClient(leaf_of(MEMBER))
    await asyncio.to_thread(client.call, here.address, STATUS)
    here.pause()
    here.remove(MEMBER)
    answer = await asyncio.to_thread(client.call, here.address, STATUS)
    assert answer.resumed
    assert (here.asked, here.refused("not-a-member")) == (1, 1)


async def _resumed_with_an_expired_leaf(here: Place) -> None:
    client = RawClient(leaf_of(MEMBER))
    await asyncio.to_thread(client.call, here.address, STATUS)
    here.clock.ahead_s = 25 * HOUR_S
    await asyncio.to_thread(client.call, here.address, STATUS)
    assert here.asked == 1


async def _expires_on_a_connection(here: Place) -> None:
    async with open_channel(here.address, OWN.node_id, leaf_of(MEMBER)) as channel:
        assert await ask(channel) is OK
        here.clock.ahead_s = 25 * HOUR_S
        assert await ask(channel) is DENIED
        assert here.refused("leaf-expired") == 1


async def _an_older_tls(here: Place) -> None:
    client = RawClient(leaf_of(MEMBER), newest=ssl.TLSVersion.TLSv1_2)
    answer = await asyncio.to_thread(client.call, here.address, STATUS)
    assert answer.version == "TLSv1.2"
    assert (here.asked, here.refused("wrong-tls")) == (0, 1)


async def _rotated_by_the_caller(here: Place) -> None:
    for _ in range(2):
        assert await call(here, leaf_of(MEMBER)) is OK


async def _rotated_by_the_node(here: Place) -> None:
    # Both have been running for 17 hours, and the node alone looks at its clock.
    here.clock.ahead_s = -17 * HOUR_S
    await here.restart()
    old = leaf_of(MEMBER, at=here.clock())
    async with open_channel(here.address, OWN.node_id, old) as before:
        assert await ask(before) is OK
        first = await asyncio.to_thread(ssl.get_server_certificate, _split(here.join))
        here.clock.ahead_s = 0.0
        here.links.trust.refresh()
        assert await asyncio.to_thread(ssl.get_server_certificate, _split(here.join)) != first
        assert await ask(before) is OK, "an open connection goes on"
    assert await call(here, leaf_of(MEMBER)) is OK


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def answers(make: Callable[[], Leaf], pin: bytes) -> Case:
    """A client that is pinned to `pin` hangs up on a server that shows this leaf."""

    async def case(here: Place) -> None:
        async with (
            pretender(make()) as address,
            open_channel(address, pin, leaf_of(OWN)) as channel,
        ):
            assert await ask(channel) is UNAVAILABLE

    return case


async def _honest_answer(here: Place) -> None:
    async with (
        pretender(leaf_of(OTHER)) as address,
        open_channel(address, OTHER.node_id, leaf_of(OWN)) as channel,
    ):
        # It is believed, and then has nothing to say.
        assert await ask(channel) is grpc.StatusCode.UNIMPLEMENTED


async def _contacts(here: Place, pin: bytes) -> grpc.StatusCode:
    async with open_channel(here.join, pin, None) as channel:
        try:
            found = [each async for each in _fetch(channel, make_fetch(MESH_ID, WantContacts()))]
        except grpc.aio.AioRpcError as error:
            return error.code()
    assert found[0].contacts.contacts[0].node_id == OWN.node_id
    return OK


def _fetch(
    channel: grpc.aio.Channel, request: FetchRequest
) -> "grpc.aio.UnaryStreamCall[FetchRequest, Chunk]":
    return MeshStub(channel).Fetch(request, timeout=5)


async def _newcomer(here: Place) -> None:
    assert await _contacts(here, OWN.node_id) is OK


async def _newcomer_told_another_id(here: Place) -> None:
    assert await _contacts(here, OTHER.node_id) is UNAVAILABLE


async def _newcomer_on_first_use(here: Place) -> None:
    assert await asyncio.to_thread(who_answers, here.join, 5.0) == OWN.node_id


async def _newcomer_asks_to_join(here: Place) -> None:
    async with open_channel(here.join, OWN.node_id, None) as channel:
        assert (await MeshStub(channel).Join(JoinRequest(operation=b"x"), timeout=5)).accepted


async def _newcomer_wants_a_link(here: Place) -> None:
    async with open_channel(here.join, OWN.node_id, None) as channel:
        assert await MeshStub(channel).Link(timeout=5).code() is DENIED


async def _newcomer_wants_a_delta(here: Place) -> None:
    want = make_fetch(MESH_ID, WantDelta((MEMBER.node_id, 1, b"")))
    async with open_channel(here.join, OWN.node_id, None) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            _ = [each async for each in _fetch(channel, want)]
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def _newcomer_inspects(here: Place) -> None:
    async with open_channel(here.join, OWN.node_id, None) as channel:
        assert await ask(channel) is grpc.StatusCode.UNIMPLEMENTED


async def _this_machine_inspects(here: Place) -> None:
    async with grpc.aio.insecure_channel(here.inspect) as channel:
        assert await ask(channel) is OK
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await MeshStub(channel).Join(JoinRequest(), timeout=5)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


MEMBERS_NAME, OTHERS_NAME = host_name(MEMBER.node_id), host_name(OTHER.node_id)
CASES: dict[str, Case] = {
    # What a caller shows.
    "a member": shows(lambda: leaf_of(MEMBER), OK),
    "the node's own key": shows(lambda: leaf_of(OWN), OK),
    "a member whose clock is half an hour ahead": shows(
        lambda: forge(MEMBER, start_s=-HOUR_S / 2), OK
    ),
    "no certificate": shows(lambda: None, UNAVAILABLE),
    "in the clear": _in_the_clear,
    "a stranger's certificate": shows(lambda: leaf_of(STRANGER), UNAVAILABLE),
    "a foreign authority that has a member's name": shows(
        lambda: forge(STRANGER, names=[MEMBERS_NAME], issuer=MEMBER.node_id), UNAVAILABLE
    ),
    "another member's name": shows(lambda: forge(MEMBER, names=[OTHERS_NAME]), UNAVAILABLE),
    "another member's name beside its own": shows(
        lambda: forge(MEMBER, names=[MEMBERS_NAME, OTHERS_NAME]), UNAVAILABLE
    ),
    "another member as issuer": shows(
        lambda: forge(MEMBER, issuer=OTHER.node_id, names=[OTHERS_NAME]), UNAVAILABLE
    ),
    "a name for everybody": shows(lambda: forge(MEMBER, names=["*.mesh"]), UNAVAILABLE),
    "no name": shows(lambda: forge(MEMBER, names=[]), DENIED),
    "an expired leaf": shows(lambda: forge(MEMBER, start_s=-200, end_s=-100), UNAVAILABLE),
    "a leaf that is not valid yet": shows(
        lambda: forge(MEMBER, start_s=100, end_s=200), UNAVAILABLE
    ),
    "a leaf that nobody signed": shows(lambda: forge(MEMBER, self_signed=True), UNAVAILABLE),
    "a leaf under an authority of its own": shows(
        lambda: forge(MEMBER, intermediate=True), UNAVAILABLE
    ),
    "a leaf for servers only": shows(
        lambda: forge(MEMBER, usage=ExtendedKeyUsageOID.SERVER_AUTH), UNAVAILABLE
    ),
    "an Ed25519 leaf": shows(lambda: forge(MEMBER, ed25519=True), UNAVAILABLE),
    "TLS 1.2": _an_older_tls,
    # What changes while a node runs.
    "a member that joined later": _joined_later,
    "a removed member": _removed,
    "a removed member with an open connection": _removed_with_a_connection,
    "a resumed session": _resumed,
    "a resumed session after removal": _resumed_after_removal,
    "a resumed session at the moment of removal": _resumed_just_after_removal,
    "a resumed session of an expired leaf": _resumed_with_an_expired_leaf,
    "a leaf that expires on an open connection": _expires_on_a_connection,
    "a leaf that the caller has rotated": _rotated_by_the_caller,
    "a leaf that the node has rotated": _rotated_by_the_node,
    # Who answers.
    "who should answer": _honest_answer,
    "the wrong root": _pinned_to_somebody_else,
    "a member at another one's address": answers(lambda: leaf_of(MEMBER), OTHER.node_id),
    "a member that answers with another one's name": answers(
        lambda: forge(MEMBER, names=[OTHERS_NAME], usage=ExtendedKeyUsageOID.SERVER_AUTH),
        OTHER.node_id,
    ),
    "an expired leaf that answers": answers(lambda: leaf_of(OTHER, at=1.7e9), OTHER.node_id),
    # The other two listeners.
    "a newcomer": _newcomer,
    "a newcomer that was told another id": _newcomer_told_another_id,
    "a newcomer that trusts the first answer": _newcomer_on_first_use,
    "a newcomer asks to join": _newcomer_asks_to_join,
    "a newcomer wants a link": _newcomer_wants_a_link,
    "a newcomer wants a delta": _newcomer_wants_a_delta,
    "a newcomer inspects": _newcomer_inspects,
    "this machine inspects": _this_machine_inspects,
}


@pytest.mark.parametrize("name", CASES)
def test_who_gets_in(name: str) -> None:
    async def story() -> None:
        async with place() as here:
            await CASES[name](here)

    asyncio.run(story())


def test_there_are_enough_rows() -> None:
    assert len(CASES) >= 25


def test_a_connection_is_tls_1_3_with_a_hybrid_key_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Recorded traffic stays secret even from whoever has a quantum computer one day."""
    seen: list[dict[str, list[bytes]]] = []
    caller = Gate.caller

    def look(self: Gate, context: Any) -> Presented:
        seen.append(dict(context.auth_context()))
        return caller(self, context)

    monkeypatch.setattr(Gate, "caller", look)

    async def story() -> None:
        async with place() as here:
            assert await call(here, leaf_of(MEMBER)) is OK

    asyncio.run(story())
    (facts,) = seen
    assert facts["ssl_tls_version"] == [b"TLSv1.3"]
    assert facts["ssl_negotiated_key_exchange_group"] == [b"X25519MLKEM768"]
