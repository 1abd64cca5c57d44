"""Catching up: nothing is believed without its certificate, and answers are rationed."""

from dataclasses import replace

from shoal.consensus.catch_up import build_status
from shoal.consensus.effects import Received, Send, Started, Submitted
from shoal.consensus.messages import (
    CommitProof,
    Request,
    Stability,
    Status,
    decode,
    encode,
)
from shoal.consensus.replica import Replica
from shoal.consensus.state import Config
from shoal.consensus.votes import VoteKind
from tests.consensus.mesh import Mesh, digest_of


def lagging() -> Mesh:
    """Replica 3 missed nine operations, and the others have forgotten the first eight."""
    mesh = Mesh(4, retained=0)
    mesh.crash(3)
    mesh.order([mesh.join(f"m{i}") for i in range(9)])
    mesh.restart(3)
    mesh.wire.clear()
    return mesh


def test_a_snapshot_is_taken_only_with_a_quorum_behind_it() -> None:
    mesh = lagging()
    good = mesh.core(0)
    assert good.stability is not None
    minority = mesh.certificate(
        VoteKind.STABLE, [0, 1], view=0, sequence=8, digest=good.stability.digest
    )
    mesh.give(3, Stability(minority, good.snapshot))
    mesh.give(3, Stability(good.stability, good.snapshot + b"\x00"))
    mesh.give(3, Stability(replace(good.stability, kind=VoteKind.COMMIT), good.snapshot))
    mesh.give(3, Stability(replace(good.stability, sequence=12), good.snapshot))
    assert mesh.executed()[3] == 0
    assert not mesh.restored[3]
    reasons = {"no-quorum", "snapshot-differs", "not-a-stability-certificate", "bad-signature"}
    assert set(mesh.refused(3)) == reasons
    mesh.give(3, Stability(good.stability, good.snapshot))
    assert mesh.executed()[3] == 8


def test_a_snapshot_of_the_past_changes_nothing() -> None:
    mesh = lagging()
    old = mesh.core(0).stability
    assert old is not None
    mesh.give(1, Stability(old, mesh.core(0).snapshot))
    assert mesh.executed()[1] == 9
    assert not mesh.restored[1]


def test_a_commit_proof_is_a_quorum_over_this_very_operation() -> None:
    mesh = Mesh(4)
    operation, other = mesh.join("a"), mesh.join("b")
    digest = digest_of(operation)
    for signers, kind, body in (
        ([0, 1], VoteKind.COMMIT, operation),
        ([0, 1, 2], VoteKind.PREPARE, operation),
        ([0, 1, 2], VoteKind.COMMIT, other),
    ):
        proof = mesh.certificate(kind, signers, view=0, sequence=1, digest=digest)
        mesh.give(3, CommitProof(body, proof))
    assert mesh.executed()[3] == 0
    assert set(mesh.refused(3)) == {"no-quorum", "not-a-commit-certificate", "digest-mismatch"}
    proof = mesh.certificate(VoteKind.COMMIT, [0, 1, 2], view=0, sequence=1, digest=digest)
    mesh.give(3, CommitProof(operation, proof))
    assert mesh.executed()[3] == 1


def status_of(mesh: Mesh, signer: int) -> Status:
    return build_status(mesh.core(signer))


def test_a_claimed_height_without_proof_is_nothing() -> None:
    """CVE-2025-24371: a peer that says it is far ahead must not make us wait for it."""
    mesh = Mesh(4)
    boast = replace(status_of(mesh, 2), executed=10**6, low=10**6)
    mesh.give(1, boast)
    assert mesh.refused(1) == {"bad-signature": 1}
    mesh.submit(0, mesh.join())
    mesh.deliver()
    assert mesh.executed() == [1] * 4


def test_status_answers_are_rationed_per_peer() -> None:
    mesh = lagging()
    status = status_of(mesh, 3)
    data = encode(status)
    link = mesh.validators.keys[3]
    sizes = []
    for now in (100_000, 100_001, 100_400, 100_500, 100_501):
        effects = mesh.replicas[0].step(now, Received(link, data))
        sizes.append(sum(isinstance(effect, Send) for effect in effects))
    assert sizes[0] > 0
    assert sizes[1:3] == [0, 0]
    assert sizes[3] == sizes[0]
    assert sizes[4] == 0


def test_a_missing_operation_is_asked_for_and_delivered() -> None:
    mesh = Mesh(4)
    operation = mesh.join()
    mesh.submit(0, operation)
    mesh.deliver()
    proof = mesh.decided[0][0].certificate
    blank = Mesh(4)
    blank.core(2).committed[1] = proof
    assert status_of(blank, 2).wanted == (digest_of(operation),)
    blank.give(2, Request(operation))
    assert blank.executed()[2] == 1


def observer(mesh: Mesh) -> Replica:
    public, sign = mesh.keyring.identity("observer")
    config = Config(me=public)
    return Replica.restore(config, mesh.genesis, {}, sign=sign, verify=mesh.keyring.verify)


def test_an_observer_is_answered_on_its_link_with_proofs_only() -> None:
    mesh = lagging()
    watcher = observer(mesh)
    public, _ = mesh.keyring.identity("observer")
    watcher.step(0, Started())
    question = encode(build_status(watcher._core))
    effects = mesh.replicas[1].step(200_000, Received(public, question))
    answers = [effect for effect in effects if isinstance(effect, Send)]
    assert {type(decode(answer.data)) for answer in answers} == {Stability, CommitProof}
    assert {answer.to for answer in answers} == {public}
    for answer in answers:
        watcher.step(1, Received(mesh.validators.keys[1], answer.data))
    assert watcher.ledger.digest() == mesh.replicas[1].ledger.digest()


def test_an_observer_can_ask_for_an_operation_and_ignores_votes() -> None:
    mesh = Mesh(4)
    watcher = observer(mesh)
    effects = watcher.step(0, Submitted(mesh.join()))
    assert [decode(e.data) for e in effects if hasattr(e, "data")] == [Request(mesh.join())]
    vote = mesh.vote(VoteKind.COMMIT, 1, view=0, sequence=1, digest=bytes(32))
    watcher.step(1, Received(mesh.validators.keys[1], encode(vote)))
    assert dict(watcher.inspect().refused) == {"not-for-observers": 1}
