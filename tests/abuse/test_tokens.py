"""Who becomes a member and who does not: one row a case, with real nodes and real join ports."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from shoal.consensus.invitations import InvitedRole
from shoal.consensus.records import Join, operation_bytes, parse_operation
from shoal.node import membership
from shoal.node.config import load_settings
from shoal.node.errors import NOT_ADMITTED, NotAdmittedError, UserError
from shoal.node.identity import Identity
from shoal.node.invitations import INVITATION_NAME, as_line, parse_line
from shoal.node.join import join_mesh
from shoal.node.ports import free_ports
from tests.abuse.token_table import Town, town
from tests.node.inviting import now_ms
from tests.node.mesh import QUICK, RunningNode, any_address, found_mesh, running, until

Case: TypeAlias = Callable[[Town], Awaitable[None]]
MEMBER, VALIDATOR = InvitedRole.MEMBER, InvitedRole.VALIDATOR


def says(expected: str, **changes: Any) -> Case:
    """An invitation by node 0, changed before it is signed, brings this answer."""

    async def case(here: Town) -> None:
        who = Identity.generate()
        assert await here.tries(who, here.invite(**changes)) == expected
        assert here.is_in(who) == (not expected)

    return case


async def _none(here: Town) -> None:
    assert await here.tries(Identity.generate(), None) == "not-invited"


async def _moves(here: Town) -> None:
    who = await here.newcomer()
    assert await here.ask(here.join(who, None)) == ""


async def _expired_but_in(here: Town) -> None:
    """The answer was lost: asking again after the hour tells it that it is in."""
    who = Identity.generate()
    invitation = here.invite(uses=2, expires_ms=now_ms() + 3_000)
    operation = here.join(who, invitation)
    assert await here.ask(operation) == ""
    await here.settled(who)
    await asyncio.sleep(max(0, invitation.expires_ms - now_ms()) / 1000 + 0.1)
    assert await here.ask(operation) == ""
    assert await here.ask(here.join(who, invitation), 1) == "", "a node that was started again"
    assert await here.tries(Identity.generate(), invitation) == "invitation-expired"


async def _spent(here: Town) -> None:
    invitation = here.invite()
    assert await here.tries(Identity.generate(), invitation) == ""
    late = Identity.generate()
    assert await here.tries(late, invitation, at=0) == "invitation-spent"
    assert await here.tries(late, invitation, at=1) == "invitation-spent"


async def _two_uses(here: Town) -> None:
    invitation = here.invite(uses=2)
    answers = [await here.tries(Identity.generate(), invitation) for _ in range(3)]
    assert answers == ["", "", "invitation-spent"]


async def _raced(here: Town) -> None:
    """Two newcomers, one use, two members asked at once: the log lets in exactly one."""
    who, invitation = [Identity.generate() for _ in range(2)], here.invite()
    joins = [here.join(each, invitation) for each in who]
    assert await asyncio.gather(*(here.ask(join, at) for at, join in enumerate(joins))) == ["", ""]
    await until(lambda: any(map(here.is_in, who)), here.nodes)
    (loser,) = (at for at, each in enumerate(who) if not here.is_in(each))
    # Its Join may be ordered as well and come to nothing; whoever asks again is told so.
    for _ in range(100):
        if said := await here.ask(joins[loser], loser):
            break
        await asyncio.sleep(0.5)
    assert said == "invitation-spent"
    assert here.is_in(who[1 - loser]) and not here.is_in(who[loser])


async def _forged(here: Town) -> None:
    good, stranger = here.invite(), Identity.generate()
    for bad in (
        replace(good, signature=stranger.sign(good.signed_bytes())),
        replace(good, uses=9),
        replace(good, expires_ms=good.expires_ms + 1),
        replace(good, inviter=here.nodes[1].id),
    ):
        assert await here.tries(Identity.generate(), bad) == "bad-invitation-signature"


async def _swapped(here: Town) -> None:
    """Somebody on the way puts another invitation into a Join that it did not sign."""
    join = parse_operation(here.join(Identity.generate(), here.invite()))
    assert isinstance(join, Join)
    swapped = operation_bytes(replace(join, invitation=here.invite(1)))
    assert await here.ask(swapped) == "bad-signature"


async def _foreign(here: Town) -> None:
    invitation = here.invited_by(Identity.generate())
    assert await here.tries(Identity.generate(), invitation) == "inviter-not-a-member"


async def _inviter_removed(here: Town) -> None:
    inviter = await here.newcomer()
    invitation = here.invited_by(inviter, uses=2)
    assert await here.tries(Identity.generate(), invitation) == ""
    await here.expel(inviter)
    for at in (0, 1):
        assert await here.tries(Identity.generate(), invitation, at=at) == "inviter-not-a-member"


async def _inviter_back(here: Town) -> None:
    inviter = await here.newcomer()
    old = here.invited_by(inviter, uses=2)
    assert await here.tries(Identity.generate(), old) == ""
    await here.leaves(inviter)
    assert await here.tries(Identity.generate(), old) == "inviter-not-a-member"
    assert await here.tries(inviter, here.invite(), votes=True) == ""
    assert await here.tries(Identity.generate(), old) == "invitation-void"
    assert await here.tries(Identity.generate(), here.invited_by(inviter)) == ""


async def _replayed(here: Town) -> None:
    who, invitation = Identity.generate(), here.invite()
    operation = here.join(who, invitation)
    assert await here.ask(operation) == ""
    await here.settled(who)
    await here.leaves(who)
    for at in (0, 1):
        await here.ask(operation, at)
        here.nodes[at].node.state.consensus.submit(operation)
    assert await here.tries(who, invitation) == "invitation-spent"
    # Something else is ordered after all of that.
    await here.newcomer()
    assert not here.is_in(who)


async def _escalates(here: Town) -> None:
    who, guest = Identity.generate(), here.invite(role=MEMBER)
    assert await here.tries(who, guest, votes=True) == "not-invited-to-validate"
    assert await here.tries(who, guest) == ""
    assert await here.tries(who, None, votes=True) == "not-invited-to-validate"
    better = here.invite(role=VALIDATOR)
    assert await here.tries(who, better, votes=True) == "not-invited-to-validate"


async def _guest_invites(here: Town) -> None:
    guest = await here.newcomer(role=MEMBER)
    second = here.invited_by(guest, role=VALIDATOR)
    assert await here.tries(Identity.generate(), second, votes=True) == "inviter-may-not-validate"
    assert await here.tries(Identity.generate(), here.invited_by(guest, role=MEMBER)) == ""


async def _same_number(here: Town) -> None:
    number = here.time_ms() + 1_000
    one, other = here.invite(0, number=number), here.invite(1, number=number)
    assert await here.tries(Identity.generate(), one) == ""
    assert await here.tries(Identity.generate(), other) == "", "another inviter's"
    again = here.invite(0, number=number, hint="127.0.0.1:2")
    assert await here.tries(Identity.generate(), again) == "invitation-spent", "the same inviter's"


async def _line(here: Town) -> None:
    text = as_line(here.invite())
    broken = "\r\n> ".join(text[at : at + 72] for at in range(0, len(text), 72))
    with pytest.raises(UserError, match="damaged"):
        parse_line(broken)
    mailed = " \r\n\t".join(text[at : at + 72] for at in range(0, len(text), 72))
    assert await here.tries(Identity.generate(), parse_line(f"\n  {mailed}\n")) == ""


async def _truncated(here: Town) -> None:
    text = as_line(here.invite())
    for cut in range(len(text)):
        with pytest.raises(UserError, match="the whole line"):
            parse_line(text[:cut])


CASES: dict[str, Case] = {
    "a good one": says(""),
    "no invitation": _none,
    "a member that moves": _moves,
    "an expired one": says("invitation-expired", expires_ms=now_ms() - 1),
    "an expired one of somebody who is in": _expired_but_in,
    "a spent one": _spent,
    "one of two uses, three times": _two_uses,
    "raced at two members": _raced,
    "to another mesh": says("wrong-mesh", mesh_id=bytes(32)),
    "a forged signature": _forged,
    "put into somebody else's Join": _swapped,
    "by somebody who is no member": _foreign,
    "by a member that was removed": _inviter_removed,
    "by a member that left and came back": _inviter_back,
    "a replayed Join of a member that left": _replayed,
    "of another history": says("wrong-epoch", epoch_digest=bytes(32)),
    "numbered from before the beginning": says("invitation-void", number=0),
    "to take part, used to vote": _escalates,
    "to vote, by a guest": _guest_invites,
    "a number that another inviter has used": _same_number,
    "a line broken by a mail client": _line,
    "a line that is cut off": _truncated,
}


@pytest.mark.parametrize("name", CASES)
def test_who_becomes_a_member(name: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with town(tmp_path) as here:
            await CASES[name](here)

    asyncio.run(story())


def test_there_are_enough_rows() -> None:
    assert len(CASES) >= 14


async def fetched(directory: Path, here: Town, **changes: Any) -> RunningNode:
    """A newcomer's directory, as `shoal join` makes it."""
    arguments: dict[str, Any] = {
        "listen": any_address(),
        "advertise": "",
        "data": here.nodes[0].settings.train.data,
        "contact": here.nodes[0].id,
        **changes,
    }
    await join_mesh(here.nodes[0].settings.node.join_listen, directory, **arguments)
    return RunningNode(directory, load_settings(directory, QUICK))


def test_two_nodes_with_one_line_one_of_them_ends_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "JOIN_INTERVAL_S", 0.3)

    async def story() -> None:
        async with town(tmp_path / "mesh") as here:
            invitation = here.invite()
            joiners = [
                await fetched(
                    tmp_path / f"{port}", here, invitation=invitation, listen=f"127.0.0.1:{port}"
                )
                for port in free_ports(2)
            ]
            try:
                for joiner in joiners:
                    assert (joiner.directory / INVITATION_NAME).stat().st_mode & 0o777 == 0o600
                    await joiner.start(train=False)
                await until(lambda: any(each.failed() is not None for each in joiners), here.nodes)
                loser, winner = sorted(joiners, key=lambda each: each.failed() is None)
                cause = loser.cause()
                assert isinstance(cause, NotAdmittedError) and "used up" in str(cause)
                assert cause.exit_code == NOT_ADMITTED == 1
                await until(lambda: winner.node.status().role == "member", [*here.nodes, winner])
                kept = winner.directory / INVITATION_NAME
                await until(lambda: not kept.exists(), [*here.nodes, winner])
                assert (loser.directory / INVITATION_NAME).exists()
            finally:
                await asyncio.gather(*(each.stop() for each in joiners))

    asyncio.run(story())


def test_a_node_does_not_ask_before_it_knows_its_invitations_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "JOIN_INTERVAL_S", 0.1)

    async def story() -> None:
        async with town(tmp_path / "mesh") as here:
            ahead = here.invite(epoch=1)
            joiner = await fetched(tmp_path / "ahead", here, invitation=ahead)
            await joiner.start(train=False)
            try:
                await asyncio.sleep(1.5)
                assert joiner.failed() is None, "it waits"
                # Whoever is asked would not know any better, and would let it in.
                assert not here.is_in(Identity.load(joiner.directory / "identity.key"))
                await here.next_epoch()
                await until(lambda: joiner.failed() is not None, here.nodes)
                cause = joiner.cause()
                assert isinstance(cause, NotAdmittedError) and "another history" in str(cause)
            finally:
                await joiner.stop()

    asyncio.run(story())


def test_who_answers_must_be_the_inviter_or_whom_one_named(tmp_path: Path) -> None:
    async def story() -> None:
        async with town(tmp_path / "mesh") as here:
            evil, inviter = here.nodes[0].id, here.nodes[1].id
            invitation = here.invite(1)
            with pytest.raises(UserError, match=f"{evil.hex()[:8]} answers at .*, not"):
                await fetched(tmp_path / "a", here, invitation=invitation, contact=inviter)
            assert not (tmp_path / "a").exists()
            await fetched(tmp_path / "a", here, invitation=invitation, contact=evil)
            assert (tmp_path / "a" / "node.toml").exists()

    asyncio.run(story())


def test_what_answers_must_be_the_mesh_and_the_history_of_the_invitation(tmp_path: Path) -> None:
    async def story() -> None:
        (other,) = found_mesh(tmp_path / "other", nodes=1)
        async with town(tmp_path / "mesh") as here, running([other], rounds=0) as (stranger,):
            elsewhere = here.invite(mesh_id=stranger.node.mesh_id)
            with pytest.raises(UserError, match="wrong mesh"):
                await fetched(tmp_path / "a", here, invitation=elsewhere)
            forked = here.invite(epoch_digest=bytes(32))
            with pytest.raises(NotAdmittedError, match="another history of this mesh"):
                await fetched(tmp_path / "a", here, invitation=forked)
            assert not (tmp_path / "a").exists()

    asyncio.run(story())
