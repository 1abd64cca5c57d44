"""Attest, then order: a candidate becomes an operation when a quorum has computed the same."""

from dataclasses import dataclass, replace

import pytest

from shoal.consensus.attest import PREFIX, Attestor, AttestorConfig
from shoal.consensus.effects import (
    AttestorEvent,
    Broadcast,
    CandidateReady,
    Check,
    Checked,
    Committed,
    CutDue,
    Effect,
    EpochStarted,
    Evidence,
    Persist,
    Propose,
    Received,
    Send,
    SetTimer,
    Started,
    Submit,
    TimerFired,
)
from shoal.consensus.messages import Candidate, Request, decode, encode
from shoal.consensus.records import Checkpoint, CheckpointRecord, parse_operation
from shoal.consensus.validators import Validators, Verifier
from shoal.consensus.validity import validate
from shoal.consensus.votes import VoteKind
from tests.consensus.mesh import MESH_ID, Mesh

# The proposer of (height 1, attempt 0) is validator 1, of attempt 1 validator 2, and so on.
FIRST, SECOND = 1, 2


@dataclass
class Desk:
    """One attestor with its rows, and its last effects by kind."""

    mesh: Mesh
    index: int
    rows: dict[str, bytes]
    attestor: Attestor
    now_ms: int = 0

    @classmethod
    def of(cls, mesh: Mesh, index: int, rows: dict[str, bytes] | None = None) -> "Desk":
        rows = rows if rows is not None else {}
        config = AttestorConfig(validators=mesh.validators, me=mesh.validators.keys[index])
        attestor = Attestor(config, rows, sign=mesh.signers[index], verify=mesh.keyring.verify)
        return cls(mesh, index, rows, attestor)

    def step(self, event: AttestorEvent) -> list[Effect]:
        effects = self.attestor.step(self.now_ms, event)
        for effect in effects:
            if isinstance(effect, Persist):
                for key, value in effect.rows:
                    if value is None:
                        self.rows.pop(key, None)
                    else:
                        self.rows[key] = value
        return effects

    def hear(self, data: bytes) -> list[Effect]:
        return self.step(Received(self.mesh.validators.keys[0], data))

    def restart(self) -> "Desk":
        return Desk.of(self.mesh, self.index, self.rows)


def only(effects: list[Effect], kind: type) -> list:  # type: ignore[type-arg]
    return [effect for effect in effects if isinstance(effect, kind)]


def announced(mesh: Mesh, record: CheckpointRecord) -> bytes:
    """A candidate as its proposer would send it."""
    signer = mesh.validators.proposer(record.height, record.attempt)
    vote = mesh.vote(
        VoteKind.CANDIDATE,
        signer,
        view=record.attempt,
        sequence=record.height,
        digest=record.digest,
    )
    return encode(Candidate(vote, record))


def attestation(mesh: Mesh, signer: int, record: CheckpointRecord) -> bytes:
    vote = mesh.vote(
        VoteKind.ATTEST,
        signer,
        view=record.attempt,
        sequence=record.height,
        digest=record.digest,
    )
    return encode(vote)


def proposing(n: int = 4) -> tuple[Mesh, Desk, CheckpointRecord]:
    """The first proposer, with its candidate out."""
    mesh = Mesh(n)
    desk = Desk.of(mesh, mesh.validators.proposer(1, 0))
    assert only(desk.step(CutDue(1)), Propose) == [Propose(1, 0, MESH_ID)]
    record = mesh.record()
    desk.step(CandidateReady(record))
    return mesh, desk, record


@pytest.mark.parametrize("n", [2, 3, 4, 6, 7])
def test_a_quorum_of_attestations_makes_a_valid_operation(n: int) -> None:
    mesh, desk, record = proposing(n)
    submitted: list[Submit] = []
    for signer in range(n):
        if signer != desk.index and not submitted:
            submitted = only(desk.hear(attestation(mesh, signer, record)), Submit)
    (submit,) = submitted
    operation = parse_operation(submit.operation)
    assert isinstance(operation, Checkpoint)
    assert operation.record == record
    assert len(operation.attestation.signers) == mesh.validators.quorum
    assert validate(operation, Verifier(mesh.validators, mesh.keyring.verify)) is None


def test_alone_in_the_mesh_one_attestation_is_enough() -> None:
    mesh = Mesh(1)
    desk = Desk.of(mesh, 0)
    desk.step(CutDue(1))
    assert only(desk.step(CandidateReady(mesh.record())), Submit)


def test_a_validator_checks_before_it_attests_and_writes_down_before_it_sends() -> None:
    mesh = Mesh(4)
    desk, record = Desk.of(mesh, 3), mesh.record()
    effects = desk.hear(announced(mesh, record))
    assert only(effects, Check) == [Check(record)]
    assert not only(effects, Send)
    effects = desk.step(Checked(record.digest, True))
    assert isinstance(effects[0], Persist)
    assert f"{PREFIX}vote/0/5/0/1" in desk.rows
    (sent,) = only(effects, Send)
    assert sent.to == mesh.validators.keys[FIRST]
    assert encode(decode(sent.data)) == attestation(mesh, 3, record)


def test_what_the_node_computes_differently_is_never_attested() -> None:
    mesh = Mesh(4)
    desk, record = Desk.of(mesh, 3), mesh.record()
    desk.hear(announced(mesh, record))
    assert desk.step(Checked(record.digest, False)) == []
    assert desk.hear(announced(mesh, record)) == [], "and not checked again either"


def test_a_repeated_candidate_is_checked_once_and_answered_with_the_same_bytes() -> None:
    mesh = Mesh(4)
    desk, record = Desk.of(mesh, 3), mesh.record()
    desk.hear(announced(mesh, record))
    assert desk.hear(announced(mesh, record)) == []
    first = only(desk.step(Checked(record.digest, True)), Send)
    assert only(desk.hear(announced(mesh, record)), Send) == first
    again = desk.restart()
    effects = again.hear(announced(mesh, record))
    assert only(effects, Send) == first
    assert not only(effects, Check)


def test_a_dead_proposer_costs_one_attempt() -> None:
    mesh = Mesh(4)
    desk = Desk.of(mesh, SECOND)
    (timer,) = only(desk.step(CutDue(1)), SetTimer)
    desk.now_ms = timer.at_ms
    assert only(desk.step(TimerFired("attempt")), Propose) == [Propose(1, 1, MESH_ID)]


def test_deadlines_double_once_everybody_had_a_turn() -> None:
    mesh = Mesh(4)
    desk = Desk.of(mesh, 0)
    effects, waits = desk.step(CutDue(1)), []
    for _ in range(9):
        timer = next(e for e in effects if isinstance(e, SetTimer) and e.name == "attempt")
        waits.append(timer.at_ms - desk.now_ms)
        desk.now_ms = timer.at_ms
        effects = desk.step(TimerFired("attempt"))
    assert waits == [10_000] * 4 + [20_000] * 4 + [40_000]


def test_any_attempt_within_reach_is_attested_whatever_ours_is() -> None:
    mesh = Mesh(4)
    desk = Desk.of(mesh, 3)
    desk.step(CutDue(1))
    for attempt in (1, 0):
        record = mesh.record(attempt=attempt)
        assert only(desk.hear(announced(mesh, record)), Check)
        assert only(desk.step(Checked(record.digest, True)), Send)
    assert desk.hear(announced(mesh, mesh.record(attempt=40))) == []
    assert desk.attestor.refused["attempt-too-far"] == 1


def test_two_records_for_one_attempt_are_evidence_and_only_the_first_is_attested() -> None:
    mesh = Mesh(4)
    desk, record = Desk.of(mesh, 3), mesh.record()
    desk.hear(announced(mesh, record))
    desk.step(Checked(record.digest, True))
    other = mesh.record(anchor_root=b"\x01" * 32)
    (evidence,) = only(desk.hear(announced(mesh, other)), Evidence)
    assert (evidence.kind, evidence.signer) == (
        "candidate-equivocation",
        mesh.validators.keys[FIRST],
    )
    # A restart forgets what was seen, not what was signed.
    again = desk.restart()
    assert not only(again.hear(announced(mesh, other)), Check)


def test_a_restarted_proposer_repeats_its_candidate_instead_of_making_another() -> None:
    mesh, desk, record = proposing()
    again = desk.restart()
    effects = again.step(CutDue(1))
    assert not only(effects, Propose)
    (sent,) = only(effects, Broadcast)
    message = decode(sent.data)
    assert isinstance(message, Candidate)
    assert message.record == record
    assert again.step(CandidateReady(replace(record, anchor_root=b"\x01" * 32))) == []
    assert mesh.validators.keys[FIRST] == record.proposer


def test_an_unfinished_candidate_is_announced_again_and_a_certified_one_submitted_again() -> None:
    mesh, desk, record = proposing()
    desk.now_ms = 1_000
    assert len(only(desk.step(TimerFired("resend")), Broadcast)) == 1
    for signer in (0, 2):
        desk.hear(attestation(mesh, signer, record))
    desk.now_ms = 2_000
    effects = desk.step(TimerFired("resend"))
    assert len(only(effects, Submit)) == 1
    assert not only(effects, Broadcast)


def test_a_commit_by_whomever_ends_the_height() -> None:
    mesh, desk, record = proposing()
    digest = b"\x09" * 32
    desk.step(Committed(1, digest))
    assert not desk.rows, "nothing is kept of a settled height"
    assert desk.hear(attestation(mesh, 0, record)) == []
    assert desk.hear(announced(mesh, mesh.record(attempt=1))) == []
    assert desk.step(Checked(record.digest, True)) == []
    desk.now_ms = 10**6
    assert desk.step(TimerFired("attempt")) == []
    assert only(desk.step(CutDue(2)), SetTimer)
    following = mesh.record(height=2, parent=digest, attempt=1)
    assert only(desk.hear(announced(mesh, following)), Check) == [Check(following)]


def forgeries(mesh: Mesh) -> list[tuple[bytes, str]]:
    record = mesh.record()
    vote = mesh.vote(VoteKind.CANDIDATE, FIRST, view=0, sequence=1, digest=record.digest)
    other = mesh.record(anchor_root=b"\x01" * 32)
    usurper = mesh.vote(VoteKind.CANDIDATE, 2, view=0, sequence=1, digest=record.digest)
    shifted = mesh.vote(VoteKind.CANDIDATE, FIRST, view=4, sequence=1, digest=record.digest)
    foreign = replace(record, mesh_id=bytes(32))
    return [
        (encode(Candidate(vote, other)), "digest-mismatch"),
        (encode(Candidate(replace(vote, signature=bytes(64)), record)), "bad-signature"),
        (encode(Candidate(usurper, record)), "wrong-proposer"),
        (encode(Candidate(shifted, record)), "header-differs"),
        (encode(Candidate(vote, foreign)), "wrong-mesh"),
        (announced(mesh, mesh.record(height=2)), "other-height"),
        (announced(mesh, mesh.record(parent=bytes(32))), "other-height"),
        (attestation(mesh, 0, record), "not-our-candidate"),
        (encode(Request(b"x")), "not-for-attestors"),
        (b"", "truncated"),
    ]


@pytest.mark.parametrize("case", range(10))
def test_a_forgery_is_counted_and_nothing_else(case: int) -> None:
    mesh = Mesh(4)
    desk = Desk.of(mesh, 3)
    data, reason = forgeries(mesh)[case]
    assert desk.hear(data) == []
    assert dict(desk.attestor.refused) == {reason: 1}
    assert not desk.rows


def test_attestations_of_something_else_do_not_count() -> None:
    mesh, desk, record = proposing()
    other = mesh.record(anchor_root=b"\x01" * 32)
    desk.hear(attestation(mesh, 0, other))
    data = attestation(mesh, 0, record)
    desk.hear(data[:-1] + bytes([data[-1] ^ 1]))
    for _ in range(3):
        assert not only(desk.hear(attestation(mesh, 2, record)), Submit), "one validator, one vote"
    assert dict(desk.attestor.refused) == {"digest-mismatch": 1, "bad-signature": 1}


def test_where_we_do_not_vote_nothing_is_proposed_checked_or_signed() -> None:
    mesh = Mesh(4)
    public, sign = mesh.keyring.identity("observer")
    config = AttestorConfig(validators=mesh.validators, me=public)
    attestor = Attestor(config, {}, sign=sign, verify=mesh.keyring.verify)
    record, sender = mesh.record(), mesh.validators.keys[FIRST]
    events: list[AttestorEvent] = [
        Started(),
        CutDue(1),
        Received(sender, announced(mesh, record)),
        CandidateReady(record),
        Checked(record.digest, True),
        TimerFired("attempt"),
        TimerFired("resend"),
    ]
    for event in events:
        assert attestor.step(0, event) == []
    assert dict(attestor.refused) == {"not-a-validator": 1}


def successor(mesh: Mesh, *, without: int | None = None) -> Validators:
    keys = [key for i, key in enumerate(mesh.validators.keys) if i != without]
    return Validators(MESH_ID, 1, tuple(keys))


def test_what_one_epoch_attested_is_nothing_in_the_next() -> None:
    mesh, desk, record = proposing()
    desk.hear(attestation(mesh, 0, record))
    desk.step(EpochStarted(successor(mesh), b""))
    assert not desk.rows, "neither its votes nor its candidate are kept"
    desk.hear(attestation(mesh, 2, record))
    assert dict(desk.attestor.refused) == {"not-our-candidate": 1}
    assert only(desk.step(CutDue(1)), Propose) == [Propose(1, 0, MESH_ID)], "it begins again"
    desk.step(CandidateReady(record))
    desk.hear(attestation(mesh, 0, record))
    assert desk.attestor.refused["wrong-epoch"] == 1
    assert f"{PREFIX}vote/1/5/0/1" in desk.rows


def test_a_power_cut_just_before_the_new_epoch_is_told_leaves_no_rows_behind() -> None:
    """The replica had written down the epoch; this machine had not heard of it yet."""
    mesh = Mesh(4)
    desk, record = Desk.of(mesh, 3), mesh.record()
    desk.hear(announced(mesh, record))
    desk.step(Checked(record.digest, True))
    assert f"{PREFIX}vote/0/5/0/1" in desk.rows
    config = AttestorConfig(validators=successor(mesh), me=mesh.validators.keys[3])
    desk.attestor = Attestor(config, desk.rows, sign=mesh.signers[3], verify=mesh.keyring.verify)
    desk.step(Started())
    assert not desk.rows


def test_an_attestor_is_not_started_in_an_epoch_that_it_has_left() -> None:
    """It would forget what it attested in the later one, and could attest something else."""
    mesh = Mesh(4)
    desk, record = Desk.of(mesh, FIRST), mesh.record()
    desk.step(EpochStarted(successor(mesh), b""))
    desk.step(CutDue(1))
    desk.step(CandidateReady(record))
    assert f"{PREFIX}vote/1/5/0/1" in desk.rows
    with pytest.raises(AssertionError, match="votes of epoch 1"):
        desk.restart()


def test_a_check_that_comes_back_after_its_epoch_signs_nothing() -> None:
    mesh = Mesh(4)
    desk, record = Desk.of(mesh, 3), mesh.record()
    desk.hear(announced(mesh, record))
    desk.step(EpochStarted(successor(mesh), b""))
    assert desk.step(Checked(record.digest, True)) == []


def test_a_candidate_asked_for_in_an_epoch_that_we_left_is_not_announced() -> None:
    mesh = Mesh(4)
    desk = Desk.of(mesh, FIRST)
    assert only(desk.step(CutDue(1)), Propose)
    desk.step(EpochStarted(successor(mesh, without=FIRST), b""))
    assert desk.step(CandidateReady(mesh.record())) == []
    desk.now_ms = 10**6
    assert desk.step(TimerFired("attempt")) == []


def test_the_epoch_that_we_are_in_already_changes_nothing() -> None:
    mesh, desk, record = proposing()
    assert desk.step(EpochStarted(mesh.validators, b"")) == []
    for signer in (0, 2):
        effects = desk.hear(attestation(mesh, signer, record))
    assert len(only(effects, Submit)) == 1
