"""Invitations: whose word lets somebody in, how often, and to what."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.consensus.errors import ConsensusError
from shoal.consensus.fields import Reader
from shoal.consensus.invitations import (
    MAX_INVITATION_BYTES,
    MAX_INVITATION_USES,
    MAX_USED_NUMBERS,
    Invitation,
    InvitedRole,
    Issued,
    parse_invitation,
    read_issued,
)
from shoal.consensus.ledger import Executed, Ledger, Rejected, Result
from shoal.consensus.members import Member
from shoal.consensus.records import Join, Leave, operation_bytes, operation_digest, parse_operation
from shoal.consensus.validators import Verifier
from shoal.consensus.validity import validate
from tests.consensus.mesh import MESH_ID, Mesh

MESH = Mesh(4, 2)
VERIFIER = Verifier(MESH.validators, MESH.keyring.verify)
ids = st.binary(min_size=32, max_size=32)
u64s = st.integers(0, 2**64 - 1)


def invitations() -> st.SearchStrategy[Invitation]:
    """Any that can be written down."""
    return st.builds(
        Invitation,
        mesh_id=ids,
        inviter=ids,
        number=u64s,
        uses=st.integers(1, MAX_INVITATION_USES),
        role=st.sampled_from(InvitedRole),
        epoch=u64s,
        epoch_digest=ids,
        expires_ms=u64s,
        hint=st.text(st.characters(categories=("L", "N", "P")), max_size=60),
        signature=st.binary(min_size=64, max_size=64),
    )


@given(invitations())
def test_invitations_come_back_as_they_went(invitation: Invitation) -> None:
    data = invitation.to_bytes()
    assert parse_invitation(data) == invitation
    assert len(data) <= MAX_INVITATION_BYTES
    for cut in range(0, len(data), 7):
        with pytest.raises(ConsensusError):
            parse_invitation(data[:cut])


def test_the_longest_is_as_long_as_the_limit() -> None:
    assert len(MESH.invitation(hint="a" * 255).to_bytes()) == MAX_INVITATION_BYTES


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:72] + b"\x00" + data[73:], "bad-invitation"),
        (lambda data: data[:73] + b"\x00" + data[74:], "bad-invitation"),
        (lambda data: data[:73] + b"\x03" + data[74:], "bad-invitation"),
        (lambda data: data.replace(b"genesis:2", b"genesis\n2"), "bad-address"),
        (lambda data: data.replace(b"genesis:2", b"genesis\xff2"), "bad-address"),
        (lambda data: data + b"\x00", "trailing-bytes"),
        (lambda data: data[:-1], "truncated"),
    ],
)
def test_one_that_nobody_could_use_is_not_read(
    change: Callable[[bytes], bytes], reason: str
) -> None:
    with pytest.raises(ConsensusError) as caught:
        parse_invitation(change(MESH.invitation().to_bytes()))
    assert caught.value.reason == reason


def test_it_is_signed_by_whom_it_names_and_for_this_mesh() -> None:
    def judged(invitation: Invitation) -> str | None:
        return validate(parse_operation(MESH.join(invitation=invitation)), VERIFIER)

    good = MESH.invitation(1)
    assert judged(good) is None
    for forged in (
        replace(good, uses=2),
        replace(good, inviter=MESH.keys[2]),
        replace(good, role=InvitedRole.MEMBER),
        replace(good, expires_ms=good.expires_ms + 1),
        replace(good, epoch_digest=bytes(32)),
        replace(good, hint="elsewhere:1"),
    ):
        assert judged(forged) == "bad-invitation-signature"
    assert judged(MESH.invitation(mesh_id=bytes(32))) == "wrong-mesh"


def test_the_joiner_signs_which_invitation_it_uses() -> None:
    join = parse_operation(MESH.join(invitation=MESH.invitation(1)))
    assert isinstance(join, Join)
    for other in (None, MESH.invitation(2)):
        assert validate(replace(join, invitation=other), VERIFIER) == "bad-signature"


def fresh() -> Ledger:
    return Ledger.restore(MESH.genesis.snapshot())


def execute(ledger: Ledger, data: bytes) -> Result:
    return ledger.execute(ledger.sequence + 1, parse_operation(data), operation_digest(data))


def joins(
    ledger: Ledger, name: str, invitation: Invitation | None, *, time_ms: int = 1, **more: bool
) -> str:
    """What comes of it: "" for a new member, else why not."""
    result = execute(ledger, MESH.join(name, invitation=invitation, time_ms=time_ms, **more))
    return result.reason if isinstance(result, Rejected) else ""


def test_nobody_comes_in_without_and_a_member_needs_none_to_move() -> None:
    ledger = fresh()
    assert joins(ledger, "ann", None) == "not-invited"
    assert joins(ledger, "ann", MESH.invitation(), time_ms=2) == ""
    assert joins(ledger, "ann", None, time_ms=3) == ""
    assert joins(ledger, "bob", replace(MESH.invitation(), inviter=bytes(32))) == (
        "inviter-not-a-member"
    )


def test_it_is_used_as_often_as_it_says() -> None:
    ledger = fresh()
    once, twice = MESH.invitation(uses=1, number=5), MESH.invitation(uses=2, number=6)
    assert joins(ledger, "ann", once) == ""
    assert joins(ledger, "bob", once) == "invitation-spent"
    assert joins(ledger, "bob", twice) == ""
    assert joins(ledger, "ann", twice, time_ms=2) == "", "a member that moves uses nothing up"
    assert joins(ledger, "cid", twice) == ""
    assert joins(ledger, "dan", twice) == "invitation-spent"
    assert ledger.members[MESH.keys[0]].issued == Issued(0, ((5, 1), (6, 2)))
    other = MESH.invitation(1, uses=1, number=5)
    assert joins(ledger, "dan", other) == "", "another inviter's numbers are its own"


def test_a_second_invitation_of_the_same_number_gives_nothing_more() -> None:
    ledger = fresh()
    assert joins(ledger, "ann", MESH.invitation(uses=1, number=5, hint="")) == ""
    assert joins(ledger, "bob", MESH.invitation(uses=1, number=5)) == "invitation-spent"


def test_of_so_many_used_numbers_the_smallest_is_forgotten_and_void() -> None:
    ledger = fresh()
    for number in range(10, 10 + MAX_USED_NUMBERS):
        assert joins(ledger, f"m{number}", MESH.invitation(number=number)) == ""
    assert joins(ledger, "ann", MESH.invitation(number=9)) == "", "once, and it is forgotten"
    issued = ledger.members[MESH.keys[0]].issued
    assert (issued.floor, len(issued.used)) == (9, MAX_USED_NUMBERS)
    assert joins(ledger, "bob", MESH.invitation(number=9)) == "invitation-void"
    assert joins(ledger, "bob", MESH.invitation(number=100)) == ""
    assert joins(ledger, "cid", MESH.invitation(number=10)) == "invitation-void"
    assert joins(ledger, "cid", MESH.invitation(number=11)) == ""


def test_what_an_inviter_signed_before_it_left_is_void_when_it_is_back() -> None:
    ledger = fresh()
    old, new = MESH.invitation(5, number=40), MESH.invitation(5, number=61)
    assert joins(ledger, "ann", old) == ""
    assert execute(ledger, MESH.leave(5, time_ms=50)) == Executed()
    assert joins(ledger, "bob", old) == "inviter-not-a-member"
    assert execute(ledger, MESH.rejoin(5, time_ms=60)) == Executed()
    assert ledger.members[MESH.keys[5]].issued == Issued(60)
    assert joins(ledger, "bob", old, time_ms=2) == "invitation-void"
    assert joins(ledger, "bob", new, time_ms=3) == ""
    assert execute(ledger, MESH.rejoin(5, time_ms=90)) == Executed()
    assert ledger.members[MESH.keys[5]].issued == Issued(60, ((61, 1),)), "moving voids nothing"


def test_a_member_that_left_comes_back_with_a_new_invitation_only() -> None:
    ledger = fresh()
    once = MESH.invitation(uses=1)
    assert joins(ledger, "ann", once, time_ms=1) == ""
    public, sign = MESH.keyring.identity("ann")
    goodbye = Leave(member=public, time_ms=6)
    signed = replace(goodbye, signature=sign(goodbye.signed_bytes(MESH_ID)))
    assert execute(ledger, operation_bytes(signed)) == Executed()
    assert joins(ledger, "ann", once, time_ms=1) == "already-executed"
    assert joins(ledger, "ann", once, time_ms=7) == "invitation-spent"
    assert joins(ledger, "ann", None, time_ms=8) == "not-invited"
    assert joins(ledger, "ann", MESH.invitation(number=2), time_ms=9) == ""


def test_who_is_invited_to_take_part_is_not_invited_to_vote() -> None:
    ledger = fresh()
    guest = MESH.invitation(role=InvitedRole.MEMBER)
    assert joins(ledger, "ann", guest) == "not-invited-to-validate"
    assert joins(ledger, "ann", guest, time_ms=2, validates=False) == ""
    assert joins(ledger, "ann", None, time_ms=3) == "not-invited-to-validate"
    both = MESH.invitation(number=2)
    assert joins(ledger, "ann", both, time_ms=4) == "not-invited-to-validate", "moving is not it"
    assert joins(ledger, "ann", None, time_ms=5, validates=False) == ""
    assert joins(ledger, "bob", both) == ""
    assert joins(ledger, "bob", None, time_ms=2, validates=False) == ""
    assert joins(ledger, "bob", None, time_ms=3) == "", "it may, and changes its mind"


def test_nobody_gives_what_it_does_not_have() -> None:
    ledger = fresh()
    public, sign = MESH.keyring.identity("ann")
    guest = MESH.invitation(role=InvitedRole.MEMBER)
    assert joins(ledger, "ann", guest, validates=False) == ""

    def by_ann(role: InvitedRole) -> Invitation:
        unsigned = replace(MESH.invitation(number=2, role=role), inviter=public)
        return replace(unsigned, signature=sign(unsigned.signed_bytes()))

    assert joins(ledger, "bob", by_ann(InvitedRole.VALIDATOR)) == "inviter-may-not-validate"
    assert joins(ledger, "bob", by_ann(InvitedRole.MEMBER), time_ms=2, validates=False) == ""


def test_an_uninvited_join_is_neither_queued_nor_executed_when_a_liar_orders_it() -> None:
    mesh = Mesh(4)
    data = mesh.join(invitation=None)
    assert mesh.replicas[0].check(data) == "not-invited"
    mesh.order([data])
    assert mesh.executed() == [0] * 4
    ledger = fresh()
    before = dict(ledger.members)
    assert execute(ledger, data) == Rejected("not-invited")
    assert ledger.members == before


def test_two_newcomers_and_one_use_exactly_one_gets_in_everywhere() -> None:
    mesh = Mesh(4)
    once = mesh.invitation(uses=1)
    mesh.submit(0, mesh.join("ann", invitation=once))
    mesh.submit(2, mesh.join("bob", invitation=once))
    mesh.deliver()
    names = {name: mesh.keyring.identity(name)[0] for name in ("ann", "bob")}
    assert mesh.executed() == [2] * 4
    for replica in mesh.replicas:
        assert sum(key in replica.ledger.members for key in names.values()) == 1
        assert replica.ledger.digest() == mesh.replicas[0].ledger.digest()
    loser = next(n for n, key in names.items() if key not in mesh.replicas[0].ledger.members)
    data = mesh.join(loser, invitation=once)
    assert mesh.replicas[0].check(data) == "already-executed", "for nothing, that is"
    assert mesh.replicas[0].ledger.refusal(parse_operation(data)) == "invitation-spent"


@pytest.mark.parametrize(
    "issued",
    [
        Issued(5, ((5, 1),)),
        Issued(0, ((2, 1), (1, 1))),
        Issued(0, ((2, 1), (2, 1))),
        Issued(0, ((2, 0),)),
        Issued(0, tuple((number, 1) for number in range(1, MAX_USED_NUMBERS + 2))),
    ],
)
def test_what_no_ledger_could_have_come_to_is_not_restored(issued: Issued) -> None:
    with pytest.raises(ConsensusError):
        read_issued(Reader(issued.to_bytes()))
    ledger = fresh()
    ledger.members[bytes(32)] = Member("a:1", 1, 1, issued=issued)
    with pytest.raises(ConsensusError):
        Ledger.restore(ledger.snapshot())


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 5), st.integers(1, 30), st.booleans())
    )
)
def test_nobody_is_in_uninvited_and_nothing_is_used_too_often(
    steps: list[tuple[str, int, int, bool]],
) -> None:
    """Random Joins by random invitations of six inviters who also come and go."""
    ledger = fresh()
    used: Counter[tuple[bytes, int]] = Counter()
    for time_ms, (name, by, number, goes) in enumerate(steps, 1):
        public, _ = MESH.keyring.identity(name)
        known = set(ledger.members)
        if goes and by > 3:
            execute(ledger, MESH.leave(by, time_ms=time_ms))
            assert set(ledger.members) <= known
            continue
        invitation = MESH.invitation(by, number=number, uses=1 + number % 3)
        why = joins(ledger, name, invitation, time_ms=time_ms)
        if public in set(ledger.members) - known:
            used[invitation.inviter, number] += 1
            assert used[invitation.inviter, number] <= invitation.uses
            assert invitation.inviter in known
        assert set(ledger.members) - known <= {public}
        assert (public in ledger.members) == (public in known or not why)
        assert all(len(each.issued.used) <= MAX_USED_NUMBERS for each in ledger.members.values())
        assert Ledger.restore(ledger.snapshot()).digest() == ledger.digest()


def test_a_use_is_counted_once_for_each_newcomer_in_the_bytes_that_are_signed() -> None:
    ledger = fresh()
    before = ledger.digest()
    data = MESH.join("ann")
    assert execute(ledger, data) == Executed()
    assert ledger.digest() != before
    assert operation_bytes(parse_operation(data)) == data
