"""The auditor finds what was planted, accuses nobody falsely, and has nothing to say of an honest
run. Every lie here is signed with a real key and read from a real file."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.consensus.certificate import Certificate, certify
from shoal.consensus.fields import SIGNATURE_BYTES
from shoal.consensus.messages import (
    NEW_VIEW_DOMAIN,
    VIEW_CHANGE_DOMAIN,
    Message,
    NewView,
    PrePrepare,
    ViewChange,
    encode,
    sealed_bytes,
)
from shoal.consensus.votes import Vote, VoteKind
from shoal.node.capture import Capture, Direction
from shoal.node.genesis import parse_document
from shoal.node.identity import Identity
from tests.chaos import audit
from tests.node.mesh import found_mesh

A, B = bytes([1]) * 32, bytes([2]) * 32


class Crime:
    """Four validators with their keys, and one file of captures for each."""

    def __init__(self, directory: Path) -> None:
        self.directories = found_mesh(directory / "mesh")
        document = (self.directories[0] / "genesis" / "genesis.json").read_bytes()
        self.mesh_id = parse_document(document).mesh_id
        keys = [Identity.load(d / "identity.key") for d in self.directories]
        self.identities = sorted(keys, key=lambda identity: identity.node_id)
        self.captures = [Capture(d / "capture" / "000001.bin") for d in self.directories]

    def vote(self, kind: VoteKind, signer: int, digest: bytes, *, view: int = 0) -> Vote:
        vote = Vote(kind, 0, view, 5, digest, signer, b"")
        signature = self.identities[signer].sign(vote.signed_bytes(self.mesh_id))
        return replace(vote, signature=signature)

    def certificate(self, kind: VoteKind, digest: bytes, signers: tuple[int, ...]) -> Certificate:
        return certify(kind, [self.vote(kind, signer, digest) for signer in signers])

    def view_change(self, signer: int, *prepared: Certificate) -> ViewChange:
        change = ViewChange(0, 1, signer, 0, None, prepared)
        signed = sealed_bytes(VIEW_CHANGE_DOMAIN, self.mesh_id, change.body())
        return replace(change, signature=self.identities[signer].sign(signed))

    def new_view(self, digest: bytes) -> NewView:
        """Of view 1, by validator 1, with a proposal for sequence 1."""
        vote = replace(self.vote(VoteKind.PRE_PREPARE, 1, digest, view=1), sequence=1)
        signature = self.identities[1].sign(vote.signed_bytes(self.mesh_id))
        message = NewView(0, 1, 1, (self.view_change(2),), ((digest, signature),))
        signed = sealed_bytes(NEW_VIEW_DOMAIN, self.mesh_id, message.body())
        return replace(message, signature=self.identities[1].sign(signed))

    def heard(self, node: int, message: Message) -> None:
        self.captures[node].write(Direction.RECEIVED, bytes(32), encode(message))

    def findings(self) -> audit.Findings:
        for capture in self.captures:
            capture.close()
        return audit.audit(self.directories)


@pytest.fixture
def crime(tmp_path: Path) -> Crime:
    return Crime(tmp_path)


def test_an_honest_run_gives_nothing_to_say(crime: Crime) -> None:
    certificate = crime.certificate(VoteKind.COMMIT, A, (0, 1, 3))
    for node in range(4):
        crime.heard(node, crime.vote(VoteKind.PREPARE, 2, A))
        crime.heard(node, crime.vote(VoteKind.COMMIT, 2, A))
        crime.heard(node, crime.vote(VoteKind.PREPARE, 2, B, view=1))
        crime.heard(node, crime.view_change(2))
        crime.captures[node].decided(certificate)
    findings = crime.findings()
    assert findings.all_problems() == []
    assert findings.summary()["votes_by_kind"] == {"COMMIT": 4, "PREPARE": 2, "VIEW_CHANGE": 1}
    assert findings.summary()["sequences_decided"] == 1
    assert findings.summary()["certificates_checked"] == 4


@pytest.mark.parametrize("kind", list(VoteKind)[1:5])
def test_two_votes_that_two_nodes_heard(crime: Crime, kind: VoteKind) -> None:
    crime.heard(0, crime.vote(kind, 2, A))
    crime.heard(3, crime.vote(kind, 2, B))
    (line,) = crime.findings().all_problems()
    assert line.startswith(f"double vote: {crime.identities[2].node_id.hex()[:8]}")
    assert kind.name in line


def _in_a_pre_prepare(crime: Crime) -> Message:
    return PrePrepare(crime.vote(VoteKind.PRE_PREPARE, 0, B), b"")


def _in_a_prepared_certificate(crime: Crime) -> Message:
    votes = [crime.vote(VoteKind.PREPARE, signer, B) for signer in (1, 3)]
    prepared = certify(VoteKind.PREPARE, [*votes, crime.vote(VoteKind.PRE_PREPARE, 0, B)])
    return crime.view_change(3, prepared)


@pytest.mark.parametrize("hidden", [_in_a_pre_prepare, _in_a_prepared_certificate])
def test_a_second_vote_hidden_in_another_message(
    crime: Crime, hidden: Callable[[Crime], Message]
) -> None:
    crime.heard(0, PrePrepare(crime.vote(VoteKind.PRE_PREPARE, 0, A), b""))
    crime.heard(1, hidden(crime))
    (line,) = crime.findings().all_problems()
    assert "PRE_PREPARE" in line


def test_a_pre_prepare_and_another_inside_a_new_view(crime: Crime) -> None:
    alone = replace(crime.vote(VoteKind.PRE_PREPARE, 1, B, view=1), sequence=1)
    signature = crime.identities[1].sign(alone.signed_bytes(crime.mesh_id))
    crime.heard(0, PrePrepare(replace(alone, signature=signature), b""))
    crime.heard(1, crime.new_view(A))
    (line,) = crime.findings().all_problems()
    assert "PRE_PREPARE" in line and "view 1, at sequence 1" in line


def test_two_new_views_for_one_view(crime: Crime) -> None:
    crime.heard(0, crime.new_view(A))
    crime.heard(1, crime.new_view(B))
    assert {line.split()[5] for line in crime.findings().all_problems()} == {
        "NEW_VIEW",
        "PRE_PREPARE",
    }


def test_two_view_changes_for_one_view(crime: Crime) -> None:
    crime.heard(0, crime.view_change(2))
    crime.heard(1, crime.view_change(2, crime.certificate(VoteKind.PREPARE, A, (1, 2, 3))))
    (line,) = crime.findings().all_problems()
    assert "VIEW_CHANGE" in line


def test_two_nodes_that_decided_apart(crime: Crime) -> None:
    crime.captures[0].decided(crime.certificate(VoteKind.COMMIT, A, (0, 1, 2)))
    crime.captures[1].decided(crime.certificate(VoteKind.COMMIT, B, (1, 2, 3)))
    findings = crime.findings()
    assert findings.diverging == [5]
    assert len(findings.double_votes) == 2, "two quorums of four share two liars"


def test_a_decision_without_a_quorum(crime: Crime) -> None:
    crime.captures[0].decided(crime.certificate(VoteKind.COMMIT, A, (0, 1)))
    assert "proves nothing" in crime.findings().all_problems()[0]


def test_a_forged_vote_accuses_nobody(crime: Crime) -> None:
    crime.heard(0, crime.vote(VoteKind.PREPARE, 2, A))
    crime.heard(0, replace(crime.vote(VoteKind.PREPARE, 2, B), signature=bytes(SIGNATURE_BYTES)))
    crime.heard(0, replace(crime.vote(VoteKind.PREPARE, 3, B), signer=2))
    findings = crime.findings()
    assert findings.all_problems() == []
    assert findings.forged == 2


def test_the_command_says_so_and_fails(
    crime: Crime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crime.heard(0, crime.vote(VoteKind.COMMIT, 2, A))
    crime.heard(1, crime.vote(VoteKind.COMMIT, 2, B))
    assert crime.findings().double_votes
    monkeypatch.setattr(sys, "argv", ["audit", *map(str, crime.directories)])
    assert audit.main() == 1
    assert "double vote" in capsys.readouterr().err
