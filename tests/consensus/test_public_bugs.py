"""Bugs that other implementations were found to have, as stories in which we must not have them.

The table in consensus/README.md names, for each of the 27, the test that covers it: most are
where the thing itself is tested, and these are the rest.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.consensus.certificate import verify_certificate
from shoal.consensus.effects import Started, Submitted
from shoal.consensus.errors import ConsensusError
from shoal.consensus.messages import CommitProof, NewView, PrePrepare, ViewChange, decode, encode
from shoal.consensus.records import operation_digest
from shoal.consensus.votes import Vote, VoteKind
from tests.consensus.mesh import Letter, Mesh, digest_of, is_vote
from tests.consensus.test_view_change import empty_change, pending_everywhere, proof_of, sealed_view

ROOT = Path(__file__).parent.parent.parent
DIGEST = b"\x05" * 32


def test_bug_01_forged_commits_decide_nothing() -> None:
    """COMMITs were collected and never verified."""
    mesh = Mesh(4)
    operation = mesh.join()
    mesh.submit(0, operation)
    mesh.deliver(lambda x: is_vote(x, VoteKind.COMMIT))
    for signer in (1, 2, 3):
        true = mesh.vote(VoteKind.COMMIT, signer, view=0, sequence=1, digest=digest_of(operation))
        forged = mesh.vote(VoteKind.COMMIT, signer, view=0, sequence=1, digest=DIGEST)
        mesh.give(0, replace(true, signature=forged.signature))
    assert mesh.executed()[0] == 0
    assert mesh.refused(0) == {"bad-signature": 3}


def test_bug_02_unsigned_prepares_prepare_nothing() -> None:
    """A PREPARE needed no signature."""
    mesh = Mesh(4)
    operation = mesh.join()
    mesh.submit(0, operation)
    for signer in (1, 2, 3):
        vote = mesh.vote(VoteKind.PREPARE, signer, view=0, sequence=1, digest=digest_of(operation))
        mesh.give(0, replace(vote, signature=bytes(64)))
    assert not mesh.core(0).prepared
    assert mesh.refused(0) == {"bad-signature": 3}


def test_bug_08_a_new_view_that_leaves_a_slot_out_is_not_entered() -> None:
    """The list of a NEW-VIEW was not compared with what its VIEW-CHANGEs say."""
    mesh = Mesh(4)
    mesh.submit(0, mesh.join())
    mesh.deliver(lambda x: is_vote(x, VoteKind.COMMIT))
    for index in (1, 2, 3):
        mesh.fire(index, "progress")
    mesh.deliver(lambda x: isinstance(x.message, NewView))
    (honest,) = {x.message for x in mesh.log if isinstance(x.message, NewView)}
    assert isinstance(honest, NewView) and len(honest.proposals) == 1
    short = sealed_view(mesh, NewView(0, 1, 1, honest.view_changes, ()))
    mesh.give(2, short, source=1)
    assert mesh.refused(2)["new-view-differs"] == 1
    assert (mesh.core(2).view, mesh.core(2).plan) == (2, {})


def test_bug_10_a_vote_is_checked_before_it_changes_anything() -> None:
    """Side effects came before the signature check."""
    mesh = Mesh(4)
    mesh.deliver()
    before = dict(mesh.rows[1])
    state = repr(mesh.core(1).slots), repr(mesh.core(1).view_changes), mesh.core(1).view
    body = mesh.join()
    for kind in (VoteKind.PREPARE, VoteKind.COMMIT, VoteKind.STABLE, VoteKind.READY):
        vote = mesh.vote(kind, 2, view=0, sequence=4, digest=DIGEST)
        mesh.give(1, replace(vote, signature=bytes(64)))
    proposal = mesh.vote(VoteKind.PRE_PREPARE, 0, view=0, sequence=1, digest=digest_of(body))
    unsigned = replace(proposal, signature=bytes(64))
    mesh.give(1, PrePrepare(unsigned, body))
    mesh.give(1, replace(empty_change(mesh, 2, 7), signature=bytes(64)))
    assert mesh.rows[1] == before
    assert state == (repr(mesh.core(1).slots), repr(mesh.core(1).view_changes), mesh.core(1).view)
    assert sum(mesh.refused(1).values()) == 6


def test_bug_11_a_view_is_a_number_and_its_leader_a_remainder() -> None:
    """The next leader was sought in a loop without end, for instance when nobody qualified."""
    mesh = Mesh(4)
    for signer in (1, 2):
        mesh.give(3, empty_change(mesh, signer, 2**64 - 2))
    core = mesh.core(3)
    assert core.view == 2**64 - 2
    assert mesh.validators.leader(2**64 - 2) == 2
    assert mesh.replicas[3].inspect().primary in mesh.keys


def test_bug_14_nobody_votes_in_an_epoch_before_it_holds_its_first_ledger() -> None:
    """A node counted as a consensus node before its recovery had ended."""
    mesh = Mesh(1, 1)
    mesh.down.add(1)
    mesh.promote(1)
    mesh.down.clear()
    mesh.log.clear()
    assert mesh.voters() == [0, 1]
    assert not mesh.replicas[0].inspect().started, "half of the set has not said READY"
    mesh.submit(0, mesh.join("waiting"))
    assert not [x for x in mesh.log if isinstance(x.message, PrePrepare)]
    mesh.gossip(3)
    votes = [x.message for x in mesh.log if x.source == 1 and isinstance(x.message, Vote)]
    assert votes[0].kind is VoteKind.READY
    mesh.gossip(2)
    assert mesh.replicas[0].ledger.digest() == mesh.replicas[1].ledger.digest()
    assert mesh.replicas[0].inspect().pending == 0


def test_bug_15_an_invalid_proposal_is_answered_by_silence_however_often_it_comes() -> None:
    """Each invalid proposal made the leader seal another one, without end."""
    mesh = Mesh(4)
    body = b"\x09nonsense"
    vote = mesh.vote(VoteKind.PRE_PREPARE, 0, view=0, sequence=1, digest=operation_digest(body))
    for _ in range(50):
        mesh.give(1, PrePrepare(vote, body))
    assert not mesh.wire
    assert mesh.refused(1) == {"unknown-operation": 50}


def test_bug_18_a_restarted_leader_repeats_its_proposal_and_makes_no_second_one() -> None:
    """A restart between writing down and sending led to another proposal for the same round."""
    mesh = Mesh(4)
    mesh.step(0, Submitted(mesh.join("first")), until=1)
    mesh.restart(0)
    mesh.submit(0, mesh.join("second"))
    mesh.deliver()
    mesh.gossip(3)
    proposals = {
        x.message.vote.sequence: x.message.vote.digest
        for x in mesh.log
        if isinstance(x.message, PrePrepare)
    }
    assert proposals == {1: digest_of(mesh.join("first")), 2: digest_of(mesh.join("second"))}
    assert not any(mesh.evidence)


def test_bug_19_rows_of_an_earlier_time_cannot_be_told_from_a_lie() -> None:
    """A restored backup signs something else for the same slot: it is evidence like any other.

    No program can see from inside that its rows are old; what it can do is to leave nobody in
    doubt. The node's own guard (a boot counter beside the key) is tested with the node.
    """
    mesh = Mesh(4)
    backup = dict(mesh.rows[0])
    mesh.submit(0, mesh.join("first"))
    mesh.deliver(lambda x: x.target == 3 or not isinstance(x.message, PrePrepare))
    mesh.rows[0] = backup
    mesh.replicas[0] = mesh.new_replica(0)
    mesh.step(0, Started())
    mesh.submit(0, mesh.join("second"))
    mesh.deliver()
    kinds = {evidence.kind for index in (1, 2) for evidence in mesh.evidence[index]}
    assert kinds == {"equivocating-primary"}
    assert {e.signer for index in (1, 2) for e in mesh.evidence[index]} == {mesh.keys[0]}


def test_bug_20_two_committed_and_the_other_five_moved_on() -> None:
    """Committed in one view while others wait in the next: both find together by the proof."""
    mesh = Mesh(7)
    mesh.submit(0, mesh.join())
    mesh.deliver(lambda x: is_vote(x, VoteKind.COMMIT) and x.target not in (0, 1))
    assert mesh.executed() == [1, 1, 0, 0, 0, 0, 0]
    for index in (2, 3, 4, 5, 6):
        mesh.fire(index, "progress")

    def between(letter: Letter) -> bool:
        return (letter.source in (0, 1)) != (letter.target in (0, 1))

    mesh.deliver(between)
    assert not mesh.core(2).active
    mesh.gossip(3)
    assert mesh.executed() == [1] * 7
    mesh.order([mesh.join("next")], at=3)
    for index in range(7):
        if "progress" in mesh.core(index).outbox.timers:
            mesh.fire(index, "progress")
    mesh.deliver()
    mesh.gossip(3)
    assert mesh.executed() == [2] * 7


@pytest.mark.parametrize("index", [4, 30, 31, 200, 255])
def test_bug_23_an_index_is_looked_at_before_it_is_used(index: int) -> None:
    """The index of a vote was used first and checked afterwards."""
    mesh = Mesh(4)
    for kind in (VoteKind.PREPARE, VoteKind.COMMIT, VoteKind.STABLE):
        vote = mesh.vote(kind, 1, view=0, sequence=4, digest=DIGEST)
        mesh.give(2, replace(vote, signer=index))
    mesh.give(2, NewView(0, 1, index, (), ()))
    mesh.give(2, ViewChange(0, 1, index, 0, None, ()))
    assert sum(mesh.refused(2).values()) == 5
    if index < 31:
        proof = mesh.certificate(VoteKind.COMMIT, [0, 1, 2], view=0, sequence=1, digest=DIGEST)
        outside = replace(proof, signers=(0, 1, index))
        with pytest.raises(ConsensusError, match="unknown-signer"):
            verify_certificate(outside, mesh.validators, mesh.keyring.verify)


def test_bug_24_as_many_signatures_as_bits_and_neither_more_nor_fewer() -> None:
    """A list of bits and a list of signatures of different lengths stopped a network."""
    mesh = Mesh(4)
    operation = mesh.join()
    proof = mesh.certificate(
        VoteKind.COMMIT, [0, 1, 2], view=0, sequence=1, digest=digest_of(operation)
    )
    data = bytearray(encode(CommitProof(operation, proof)))
    bitmap = len(data) - 3 * 64 - 1
    assert data[bitmap] == 0b111
    for bits, reason in ((0b1111, "truncated"), (0b11, "trailing-bytes"), (0, "trailing-bytes")):
        data[bitmap] = bits
        with pytest.raises(ConsensusError, match=reason):
            decode(bytes(data))
    short = replace(proof, signers=(0, 1, 2, 3))
    with pytest.raises(ConsensusError, match="bad-bitmap"):
        verify_certificate(short, mesh.validators, mesh.keyring.verify)


def test_bug_25_late_votes_after_the_quorum_go_into_no_proof() -> None:
    """What came late was kept unverified and went into the next proof.

    Here what is not needed is not kept; what says something else is verified all the same.
    """
    mesh = Mesh(4)
    operation = mesh.join()
    mesh.submit(0, operation)
    mesh.deliver(lambda x: x.source == 3)
    assert mesh.executed()[:3] == [1] * 3
    digest = digest_of(operation)
    for kind in (VoteKind.PREPARE, VoteKind.COMMIT):
        vote = mesh.vote(kind, 3, view=0, sequence=1, digest=digest)
        mesh.give(0, replace(vote, signature=bytes(64)), source=3)
    slot = mesh.core(0).slots[1]
    assert 3 not in slot.prepares and 3 not in slot.commits
    assert mesh.refused(0) == {}
    for kind in (VoteKind.PREPARE, VoteKind.COMMIT):
        vote = mesh.vote(kind, 3, view=0, sequence=1, digest=bytes(32))
        mesh.give(0, replace(vote, signature=bytes(64)), source=3)
    assert 3 not in slot.prepares and 3 not in slot.commits
    assert mesh.refused(0) == {"bad-signature": 2}


def is_new_view(letter: Letter) -> bool:
    return isinstance(letter.message, NewView)


def nothing(letter: Letter) -> bool:
    return False


def test_bug_27_view_changes_in_every_combination_of_deaths_end() -> None:
    """Seeds that failed were left out of the test; the simulator leaves none out, nor does this.

    Each validator in turn dies before, between and after the two phases of a view change.
    """
    for victim in range(4):
        for phase in range(3):
            mesh = Mesh(4)
            pending_everywhere(mesh, mesh.join())
            alive = [index for index in range(4) if index != victim]
            if phase == 0:
                mesh.crash(victim)
            for index in range(4):
                if index not in mesh.down and "progress" in mesh.core(index).outbox.timers:
                    mesh.fire(index, "progress")
            mesh.deliver(is_new_view if phase == 1 else nothing)
            mesh.crash(victim)
            for _ in range(5):
                mesh.gossip(2)
                for index in alive:
                    for timer in ("progress", "new-view"):
                        if timer in mesh.core(index).outbox.timers:
                            mesh.fire(index, timer)
                            mesh.deliver()
            assert {mesh.executed()[index] for index in alive} == {1}, (victim, phase)


def test_bug_03_one_new_view_without_its_quorum_starts_nothing() -> None:
    """A single NEW-VIEW was believed, and one sender could count as many."""
    mesh = Mesh(4)
    for signers in ([1], [1, 1, 1], [1, 2]):
        mesh.give(2, sealed_view(mesh, proof_of(mesh, signers)), source=1)
    assert (mesh.core(2).view, mesh.core(2).active) == (0, True)
    assert mesh.refused(2) == {"no-quorum": 3}


def test_every_public_bug_is_in_the_table_with_a_test_that_exists() -> None:
    table = (ROOT / "consensus" / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 28))
    here = "\n".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
    for number, where in rows:
        names = re.findall(r"`(test_\w+)`", where)
        assert names, f"bug {number} has no test"
        for name in names:
            assert f"def {name}(" in here, f"bug {number}: no {name}"
