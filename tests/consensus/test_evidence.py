"""Evidence convicts whoever made both statements, and never an honest node."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.consensus.changes import Change, ChangeKind
from shoal.consensus.errors import ConsensusError
from shoal.consensus.evidence import (
    EVIDENCE_EPOCHS,
    MAX_STATEMENT_BYTES,
    Evict,
    Proof,
    Statement,
    evidence_of_votes,
)
from shoal.consensus.ledger import Eviction
from shoal.consensus.messages import PrePrepare, ViewChange
from shoal.consensus.records import (
    MAX_OPERATION_BYTES,
    operation_bytes,
    operation_digest,
    parse_operation,
)
from shoal.consensus.replica import Replica
from shoal.consensus.safety import SafetyRules
from shoal.consensus.state import Config
from shoal.consensus.validators import Validators, Verifier
from shoal.consensus.validity import validate
from shoal.consensus.votes import Vote, VoteKind
from tests.consensus.mesh import MESH_ID, Mesh, digest_of
from tests.consensus.test_view_change import empty_change, prepared, sealed_change

MESH = Mesh(4)
LIAR = 2
ONE, OTHER = bytes(32), b"\x01" * 32
VERIFIER = Verifier(MESH.validators, MESH.keyring.verify)


def vote(digest: bytes = ONE, **changes: object) -> Vote:
    """The liar's PREPARE, or another vote."""
    fields: dict[str, object] = {"kind": VoteKind.PREPARE, "view": 1, "sequence": 3}
    fields |= {"signer": LIAR, **changes}
    return MESH.vote(digest=digest, **fields)  # type: ignore[arg-type]


def evict(one: bytes, other: bytes, proof: Proof = Proof.VOTES, member: int = LIAR) -> Evict:
    first, second = sorted((one, other))
    return Evict(MESH.keys[member], proof, first, second)


def votes(one: Vote, other: Vote, member: int = LIAR) -> Evict:
    return evict(one.to_bytes(), other.to_bytes(), Proof.VOTES, member)


def changes(one: ViewChange, other: ViewChange, member: int = LIAR) -> Evict:
    return evict(one.to_bytes(), other.to_bytes(), Proof.VIEW_CHANGES, member)


def two_stories() -> tuple[ViewChange, ViewChange]:
    """The liar leaves the view for one peer with something prepared, for another with nothing."""
    full = sealed_change(MESH, replace(prepared(MESH, [0, 1, 2]), signer=LIAR))
    return empty_change(MESH, LIAR, 1), full


@pytest.mark.parametrize("kind", list(VoteKind), ids=lambda kind: kind.name)
def test_two_votes_of_any_kind_for_one_place_convict_their_signer(kind: VoteKind) -> None:
    evidence = evidence_of_votes(vote(ONE, kind=kind), vote(OTHER, kind=kind), MESH.keys[LIAR])
    assert evidence == evidence_of_votes(
        vote(OTHER, kind=kind), vote(ONE, kind=kind), MESH.keys[LIAR]
    ), "whoever saw it in which order: one operation"
    assert validate(evidence, VERIFIER) is None


def test_two_stories_about_leaving_one_view_convict_their_teller() -> None:
    assert validate(changes(*two_stories()), VERIFIER) is None


def read_note(data: bytes) -> Statement | None:
    """A stand-in for statements of another part of the node: author, place, content."""
    if not data.startswith(b"note") or len(data) < 37:
        return None
    return Statement(data[4:36], data[36:37], data[37:])


def note(author: int, place: bytes, content: bytes) -> bytes:
    return b"note" + MESH.keys[author] + place + content


def test_statements_of_other_parts_are_read_by_whoever_knows_them() -> None:
    reading = Verifier(MESH.validators, MESH.keyring.verify, read_statement=read_note)
    lie = evict(note(LIAR, b"1", b"yes"), note(LIAR, b"1", b"no"), Proof.STATEMENTS)
    assert validate(lie, reading) is None
    assert validate(lie, VERIFIER) == "evidence-invalid", "nobody here can read it"
    apart = evict(note(LIAR, b"1", b"yes"), note(LIAR, b"2", b"no"), Proof.STATEMENTS)
    assert validate(apart, reading) == "evidence-of-two-things"
    two = evict(note(LIAR, b"1", b"yes"), note(1, b"1", b"no"), Proof.STATEMENTS)
    assert validate(two, reading) == "evidence-of-two-things"
    framed = replace(lie, member=MESH.keys[1])
    assert validate(framed, reading) == "evidence-of-somebody-else"


def later(epoch: int) -> Validators:
    return Validators(MESH_ID, epoch, MESH.validators.keys)


def of_epoch(digest: bytes, epoch: int) -> Vote:
    return MESH.vote(
        VoteKind.COMMIT, LIAR, view=0, sequence=3, digest=digest, validators=later(epoch)
    )


FOREIGN = replace(vote(), signature=MESH.signers[LIAR](vote().signed_bytes(bytes(32))))
LYING = votes(vote(ONE), vote(OTHER))
USELESS: list[tuple[str, Callable[[], Evict], str]] = [
    ("order", lambda: replace(LYING, first=LYING.second, second=LYING.first), "not-canonical"),
    ("the same twice", lambda: votes(vote(), vote()), "not-canonical"),
    ("somebody else", lambda: replace(LYING, member=MESH.keys[1]), "of-somebody-else"),
    ("two signers", lambda: votes(vote(ONE), vote(OTHER, signer=1)), "of-two-things"),
    ("two views", lambda: votes(vote(ONE), vote(OTHER, view=2)), "of-two-things"),
    ("two slots", lambda: votes(vote(ONE), vote(OTHER, sequence=4)), "of-two-things"),
    ("two kinds", lambda: votes(vote(ONE), vote(OTHER, kind=VoteKind.COMMIT)), "of-two-things"),
    ("signature", lambda: votes(vote(ONE), replace(vote(OTHER), signature=bytes(64))), "invalid"),
    ("swapped", lambda: votes(vote(ONE), replace(vote(OTHER, signer=1), signer=LIAR)), "invalid"),
    ("another mesh", lambda: votes(vote(OTHER), FOREIGN), "invalid"),
    ("an epoch to come", lambda: votes(of_epoch(ONE, 9), of_epoch(OTHER, 9)), "invalid"),
    ("two epochs", lambda: votes(of_epoch(ONE, 0), of_epoch(OTHER, 1)), "invalid"),
    ("no validator", lambda: votes(vote(ONE), replace(vote(OTHER), signer=9)), "invalid"),
    ("no votes", lambda: evict(b"a", b"b"), "invalid"),
    ("trailing", lambda: evict(vote(ONE).to_bytes(), vote(OTHER).to_bytes() + b"x"), "invalid"),
    ("not VIEW-CHANGEs", lambda: replace(LYING, proof=Proof.VIEW_CHANGES), "invalid"),
    ("not votes", lambda: replace(changes(*two_stories()), proof=Proof.VOTES), "invalid"),
    (
        "other views",
        lambda: changes(empty_change(MESH, LIAR, 1), empty_change(MESH, LIAR, 2)),
        "of-two-things",
    ),
    (
        "other tellers",
        lambda: changes(two_stories()[1], empty_change(MESH, 1, 1)),
        "of-two-things",
    ),
    (
        "one of them unsigned",
        lambda: changes(two_stories()[0], replace(two_stories()[1], signature=bytes(64))),
        "invalid",
    ),
]


@pytest.mark.parametrize(("make", "reason"), [x[1:] for x in USELESS], ids=[x[0] for x in USELESS])
def test_what_proves_nothing_convicts_nobody(make: Callable[[], Evict], reason: str) -> None:
    assert validate(make(), VERIFIER) == f"evidence-{reason}"


def test_the_same_statement_under_two_signatures_is_no_lie() -> None:
    """A signature scheme may have several signatures for one message; only contents count."""

    def lenient(public: bytes, message: bytes, signature: bytes) -> bool:
        return MESH.keyring.verify(public, message, signature[:63] + vote().signature[63:])

    twin = replace(vote(), signature=vote().signature[:63] + bytes([vote().signature[63] ^ 1]))
    verdict = validate(votes(vote(), twin), Verifier(MESH.validators, lenient))
    assert verdict == "evidence-of-nothing"


def test_evidence_reaches_back_a_few_epochs_and_no_further() -> None:
    sets = tuple(later(epoch) for epoch in range(2, 2 + EVIDENCE_EPOCHS))
    verifier = Verifier(sets[-1], MESH.keyring.verify, recent=sets)
    for epoch in range(8):
        lie = votes(of_epoch(ONE, epoch), of_epoch(OTHER, epoch))
        expected = None if 2 <= epoch < 2 + EVIDENCE_EPOCHS else "evidence-invalid"
        assert validate(lie, verifier) == expected, epoch


def test_a_replica_remembers_as_many_sets_as_evidence_may_need() -> None:
    mesh = Mesh(4)
    for number in range(EVIDENCE_EPOCHS + 1):
        mesh.decide(Change(ChangeKind.PARAMETERS, parameters=bytes([number])))
    assert [known.epoch for known in mesh.core(0).verifier.recent] == [2, 3, 4, 5]
    mesh.restart(0)
    assert [known.epoch for known in mesh.core(0).verifier.recent] == [2, 3, 4, 5]


@pytest.mark.parametrize("lie", [votes(vote(ONE), vote(OTHER)), changes(*two_stories())])
def test_the_operation_comes_back_as_it_went(lie: Evict) -> None:
    assert parse_operation(operation_bytes(lie)) == lie
    with pytest.raises(ConsensusError, match="too-large"):
        parse_operation(operation_bytes(replace(lie, first=bytes(MAX_STATEMENT_BYTES + 1))))
    with pytest.raises(ConsensusError, match="unknown-evidence"):
        parse_operation(operation_bytes(replace(lie, proof=9)))  # type: ignore[arg-type]


def test_the_largest_evidence_fits_into_an_operation() -> None:
    full = Evict(ONE, Proof.VIEW_CHANGES, bytes(MAX_STATEMENT_BYTES), bytes(MAX_STATEMENT_BYTES))
    assert len(operation_bytes(full)) <= MAX_OPERATION_BYTES


Question = tuple[VoteKind, int, int]
questions = st.tuples(st.sampled_from(list(VoteKind)), st.integers(0, 2), st.integers(1, 3))


@given(st.lists(st.tuples(questions, st.sampled_from([ONE, OTHER]), st.booleans()), max_size=12))
@settings(max_examples=60)
def test_no_two_statements_of_an_honest_node_convict_it(
    history: list[tuple[Question, bytes, bool]],
) -> None:
    """Whatever it is asked, in whatever order, with restarts in between: it cannot be accused."""
    rows: dict[str, bytes] = {}

    def keep(key: str, value: bytes | None) -> None:
        if value is None:
            del rows[key]
        else:
            rows[key] = value

    def awake(epoch: int) -> SafetyRules:
        rules = SafetyRules(
            sign=MESH.signers[1], validators=later(epoch), me=1, prefix="p/", persist=keep
        )
        rules.restore(dict(rows))
        return rules

    said: list[Vote] = []
    epoch, rules = 0, awake(0)
    for (kind, view, sequence), digest, restarts in history:
        try:
            said.append(rules.vote(kind, view=view, sequence=sequence, digest=digest))
        except AssertionError:
            # It would have contradicted itself: the process ends, and starts again.
            rules = awake(epoch)
        if restarts:
            epoch += kind is VoteKind.READY
            rules = awake(epoch)
    verifier = Verifier(
        later(epoch), MESH.keyring.verify, recent=tuple(later(e) for e in range(epoch + 1))
    )
    for one in said:
        for other in said:
            if one != other:
                assert validate(votes(one, other, member=1), verifier) is not None


@pytest.mark.parametrize(
    "kind", [VoteKind.PRE_PREPARE, VoteKind.PREPARE, VoteKind.COMMIT, VoteKind.STABLE]
)
def test_a_liar_is_found_out_and_put_out_by_the_log_for_good(kind: VoteKind) -> None:
    mesh = Mesh(4)
    liar = 0 if kind is VoteKind.PRE_PREPARE else LIAR
    for name in ("a", "b"):
        body = mesh.join(name)
        sequence = 4 if kind is VoteKind.STABLE else 1
        lie = mesh.vote(kind, liar, view=0, sequence=sequence, digest=digest_of(body))
        message = PrePrepare(lie, body) if kind is VoteKind.PRE_PREPARE else lie
        mesh.give(1, message, source=liar)
    mesh.crash(liar)
    mesh.deliver()
    for _ in range(3):
        for index in {1, 2, 3, 0} - {liar}:
            if "progress" in mesh.core(index).outbox.timers and mesh.core(index).epoch == 0:
                mesh.fire(index, "progress")
                mesh.deliver()
        mesh.gossip(2)
    others = sorted({0, 1, 2, 3} - {liar})
    for index in others:
        assert mesh.voters(index) == others
        assert mesh.core(index).ledger.departed[mesh.keys[liar]] == Eviction.EVIDENCE
    back = mesh.rejoin(liar, time_ms=2**63)
    assert mesh.replicas[others[0]].check(back) == "evicted"
    evicted = Change(ChangeKind.PROMOTE, mesh.keys[liar])
    assert mesh.replicas[others[0]].check(mesh.approve(evicted, others[0])) == "not-a-member"


def test_the_same_lie_is_reported_once_and_evicts_once() -> None:
    mesh = Mesh(4)

    def lie_of(view: int) -> bytes:
        one, other = (
            mesh.vote(VoteKind.PREPARE, LIAR, view=view, sequence=3, digest=digest)
            for digest in (ONE, OTHER)
        )
        return operation_bytes(evidence_of_votes(one, other, mesh.keys[LIAR]))

    lie, another = lie_of(1), lie_of(7)
    mesh.order([lie])
    assert mesh.voters() == [0, 1, 3]
    assert mesh.replicas[0].check(another) == "not-a-member"
    assert mesh.replicas[0].check(lie) == "already-executed"


def test_the_only_validator_is_not_evicted_whatever_it_did() -> None:
    mesh = Mesh(1)
    lies = [
        mesh.vote(VoteKind.COMMIT, 0, view=9, sequence=9, digest=digest) for digest in (ONE, OTHER)
    ]
    lie = evidence_of_votes(lies[0], lies[1], mesh.keys[0])
    assert mesh.replicas[0].check(operation_bytes(lie)) == "last-validator"


def test_a_replica_is_told_how_to_read_what_it_does_not_know() -> None:
    mesh = Mesh(4)
    lie = operation_bytes(
        evict(note(LIAR, b"1", b"yes"), note(LIAR, b"1", b"no"), Proof.STATEMENTS)
    )
    replica = Replica(
        Config(me=mesh.keys[0], read_statement=read_note),
        mesh.genesis,
        sign=mesh.signers[0],
        verify=mesh.keyring.verify,
    )
    assert replica.check(lie) is None
    assert mesh.replicas[0].check(lie) == "evidence-invalid"
    assert operation_digest(lie) != operation_digest(b"")
