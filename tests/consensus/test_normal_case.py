"""Pre-prepare, prepare, commit: the protocol on a good day, and who may say what on a bad one."""

from dataclasses import replace

import pytest

from shoal.consensus.effects import Broadcast, Decided, Persist, Received, Started, Submitted
from shoal.consensus.ledger import Executed, Rejected
from shoal.consensus.messages import CommitProof, PrePrepare, Request, decode, encode
from shoal.consensus.replica import Replica
from shoal.consensus.state import Config
from shoal.consensus.votes import Vote, VoteKind
from tests.consensus.mesh import MESH_ID, Letter, Mesh, digest_of, is_vote


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 10, 31])
def test_an_operation_submitted_anywhere_is_decided_everywhere(n: int) -> None:
    mesh = Mesh(n)
    operation = mesh.join()
    mesh.submit(n - 1, operation)
    mesh.deliver()
    assert mesh.executed() == [1] * n
    for index in range(n):
        (decided,) = mesh.decided[index]
        assert (decided.sequence, decided.operation_bytes) == (1, operation)
        assert decided.result == Executed()
    assert len({replica.ledger.digest() for replica in mesh.replicas}) == 1


def test_the_log_moves_on_past_many_windows() -> None:
    mesh = Mesh(4)
    mesh.order([mesh.join(f"m{i}") for i in range(25)])
    assert mesh.executed() == [25] * 4
    assert {mesh.core(i).low for i in range(4)} == {24}
    assert all(len(mesh.core(i).slots) <= 8 for i in range(4))


def test_slots_are_pipelined_up_to_the_next_stability_point() -> None:
    mesh = Mesh(4)
    for i in range(12):
        mesh.submit(0, mesh.join(f"m{i}", invitation=mesh.invitation(i % 4)))
    proposals = [x for x in mesh.wire if isinstance(x.message, PrePrepare) and x.target == 1]
    assert len(proposals) == 4, "what executes there may end the epoch"
    mesh.deliver()
    assert mesh.executed() == [12] * 4


def test_a_pipelined_slot_whose_turn_has_passed_is_rejected_and_stalls_nothing() -> None:
    mesh = Mesh(4)
    rivals = [mesh.checkpoint(mesh.record(attempt=a)) for a in (0, 1)]
    for operation in [*rivals, mesh.join()]:
        mesh.submit(0, operation)
    mesh.deliver()
    for index in range(4):
        results = [decided.result for decided in mesh.decided[index]]
        assert results == [Executed(), Rejected("stale-height"), Executed()]


def test_bug_12_a_gap_holds_up_execution_until_it_is_filled() -> None:
    mesh = Mesh(4)
    for name in ("a", "b"):
        mesh.submit(0, mesh.join(name))

    def first_slot(letter: Letter) -> bool:
        message = letter.message
        vote = message.vote if isinstance(message, PrePrepare) else message
        return letter.target == 3 and isinstance(vote, Vote) and vote.sequence == 1

    mesh.deliver(first_slot)
    assert mesh.executed() == [2, 2, 2, 0]
    assert 2 in mesh.core(3).committed
    mesh.gossip(2)
    assert mesh.executed() == [2] * 4
    assert mesh.digests(3) == mesh.digests(0)


def test_every_vote_is_durable_before_it_leaves() -> None:
    mesh = Mesh(4)
    effects = mesh.step(0, Submitted(mesh.join()))
    assert isinstance(effects[0], Persist)
    keys = [key for key, _ in effects[0].rows]
    assert "replica/vote/0/1/0/1" in keys
    assert any(key.startswith("replica/op/1/") for key in keys)
    mesh.deliver()
    assert not any(isinstance(effect, Persist) for effect in effects[1:])
    assert {"replica/vote/0/3/0/1", "replica/prepared/1", "replica/commit/1"} <= set(mesh.rows[0])


def test_bug_5_a_prepare_is_no_commit_however_its_bytes_are_labelled() -> None:
    mesh = Mesh(4)
    digest = digest_of(mesh.join())
    for signer in (1, 2, 3):
        prepare = mesh.vote(VoteKind.PREPARE, signer, view=0, sequence=1, digest=digest)
        mesh.give(0, replace(prepare, kind=VoteKind.COMMIT), source=signer)
    assert mesh.refused(0) == {"bad-signature": 3}
    assert mesh.executed()[0] == 0


def test_bugs_1_2_10_25_a_vote_with_a_wrong_signature_leaves_no_trace() -> None:
    mesh = Mesh(4)
    mesh.deliver()
    for kind in (VoteKind.PREPARE, VoteKind.COMMIT, VoteKind.STABLE):
        vote = mesh.vote(kind, 1, view=0, sequence=4, digest=bytes(32))
        mesh.give(2, replace(vote, signature=bytes(64)))
        mesh.give(2, replace(vote, signer=3))
        mesh.give(2, replace(vote, signer=77))
        mesh.give(2, replace(vote, epoch=1))
    core = mesh.core(2)
    assert not core.stable_votes
    assert not any(slot.prepares or slot.commits for slot in core.slots.values())
    assert mesh.refused(2) == {"bad-signature": 9, "wrong-epoch": 3}


def test_bug_9_the_sender_of_a_vote_is_its_signer_whoever_delivers_it() -> None:
    mesh = Mesh(4)
    operation = mesh.join()
    digest = digest_of(operation)
    commits = [mesh.vote(VoteKind.COMMIT, s, view=0, sequence=1, digest=digest) for s in (1, 2, 3)]
    for commit in (commits[0], commits[0], commits[0]):
        mesh.give(0, commit, source=3)
    assert mesh.core(0).slots[1].commits.keys() == {1}
    for commit in commits[1:]:
        mesh.give(0, commit, source=1)
    assert 1 in mesh.core(0).committed


def test_only_the_primary_of_our_own_view_proposes() -> None:
    mesh = Mesh(4)
    operation = mesh.join()
    digest = digest_of(operation)
    usurped = mesh.vote(VoteKind.PRE_PREPARE, 2, view=0, sequence=1, digest=digest)
    mesh.give(1, PrePrepare(usurped, operation))
    # FIB-133: a proposal of a higher view must not be worked on under the local one.
    early = mesh.vote(VoteKind.PRE_PREPARE, 1, view=1, sequence=1, digest=digest)
    mesh.give(3, PrePrepare(early, operation))
    far = mesh.vote(VoteKind.PRE_PREPARE, 0, view=0, sequence=9, digest=digest)
    mesh.give(2, PrePrepare(far, operation))
    assert mesh.refused(1) == {"not-the-primary": 1}
    assert mesh.refused(3) == {"other-view": 1}
    assert mesh.refused(2) == {"outside-window": 1}
    assert not mesh.wire


@pytest.mark.parametrize("operation", [b"\x02truncated", b"\x09nonsense"])
def test_bug_15_an_invalid_proposal_gets_no_prepare(operation: bytes) -> None:
    mesh = Mesh(4)
    vote = mesh.vote(VoteKind.PRE_PREPARE, 0, view=0, sequence=1, digest=digest_of(operation))
    mesh.give(1, PrePrepare(vote, operation))
    assert not mesh.wire
    assert sum(mesh.refused(1).values()) == 1


def test_the_body_of_a_proposal_is_what_its_digest_says() -> None:
    mesh = Mesh(4)
    vote = mesh.vote(VoteKind.PRE_PREPARE, 0, view=0, sequence=1, digest=digest_of(mesh.join("a")))
    mesh.give(1, PrePrepare(vote, mesh.join("b")))
    assert mesh.refused(1) == {"digest-mismatch": 1}


def test_an_equivocating_primary_is_convicted_and_deposed() -> None:
    mesh = Mesh(4)
    proposals = []
    for name in ("a", "b"):
        digest = digest_of(mesh.join(name))
        vote = mesh.vote(VoteKind.PRE_PREPARE, 0, view=0, sequence=1, digest=digest)
        proposals.append(PrePrepare(vote, mesh.join(name)))
    for proposal in proposals:
        mesh.give(1, proposal)
    (evidence,) = mesh.evidence[1]
    assert (evidence.kind, evidence.signer) == ("equivocating-primary", mesh.validators.keys[0])
    assert mesh.replicas[1].inspect().view == 1


@pytest.mark.parametrize("kind", [VoteKind.PREPARE, VoteKind.COMMIT, VoteKind.STABLE])
def test_a_double_vote_is_evidence_once_and_counts_once(kind: VoteKind) -> None:
    mesh = Mesh(4)
    for digest in (bytes(32), b"\x01" * 32, b"\x02" * 32):
        mesh.give(0, mesh.vote(kind, 2, view=0, sequence=4, digest=digest))
    assert [e.signer for e in mesh.evidence[0]] == [mesh.validators.keys[2]]
    assert mesh.refused(0) == {"equivocation": 2}


def test_the_primary_has_one_vote_not_two() -> None:
    mesh = Mesh(4)
    operation = mesh.join()
    digest = digest_of(operation)
    mesh.submit(0, operation)
    mesh.give(0, mesh.vote(VoteKind.PREPARE, 1, view=0, sequence=1, digest=digest))
    mesh.give(0, mesh.vote(VoteKind.PREPARE, 0, view=0, sequence=1, digest=digest), source=1)
    assert mesh.refused(0) == {"primary-does-not-prepare": 1}
    assert not mesh.core(0).prepared


def test_a_learner_needs_only_commits() -> None:
    mesh = Mesh(4)
    operation = mesh.join()
    mesh.submit(0, operation)
    mesh.deliver(lambda x: x.target == 3 and not is_vote(x, VoteKind.COMMIT))
    assert mesh.executed() == [1, 1, 1, 0]
    mesh.give(3, Request(operation))
    mesh.gossip()
    assert mesh.executed() == [1] * 4


def test_a_request_is_bounded_per_origin_and_known_ones_are_not_queued_twice() -> None:
    mesh = Mesh(4)
    mesh.down = {0, 1, 2}
    for time_ms in range(1, 12):
        mesh.give(3, Request(mesh.join("greedy", time_ms=time_ms)))
        mesh.give(3, Request(mesh.join("greedy", time_ms=time_ms)))
    assert mesh.replicas[3].inspect().pending == 8
    assert mesh.refused(3)["queue-full"] == 6
    mesh.give(3, Request(mesh.join("another of the same inviter")))
    assert mesh.refused(3)["queue-full"] == 7, "who can be made up at will shares one share"
    mesh.give(3, Request(mesh.join("modest", invitation=mesh.invitation(1))))
    mesh.give(3, Request(mesh.leave(2)))
    assert mesh.replicas[3].inspect().pending == 10


def test_an_executed_operation_is_neither_queued_nor_proposed_again() -> None:
    mesh = Mesh(4)
    operation = mesh.join()
    mesh.order([operation])
    assert mesh.replicas[0].check(operation) == "already-executed"
    mesh.order([operation])
    assert mesh.executed() == [1] * 4
    assert mesh.replicas[0].inspect().pending == 0


def test_a_decision_convinces_an_observer_who_never_votes() -> None:
    mesh = Mesh(4)
    public, sign = mesh.keyring.identity("observer")
    mesh.order([mesh.join(f"m{i}") for i in range(3)])
    observer = Replica.restore(
        Config(me=public),
        mesh.genesis,
        {},
        sign=sign,
        verify=mesh.keyring.verify,
    )
    observer.step(0, Started())
    effects = []
    for decided in mesh.decided[0]:
        proof = CommitProof(decided.operation_bytes, decided.certificate)
        effects += observer.step(1, Received(mesh.validators.keys[1], encode(proof)))
    assert [e.sequence for e in effects if isinstance(e, Decided)] == [1, 2, 3]
    assert observer.ledger.digest() == mesh.replicas[0].ledger.digest()
    spoken = [decode(e.data) for e in effects if isinstance(e, Broadcast)]
    assert not spoken
    assert observer.ledger.mesh_id == MESH_ID
