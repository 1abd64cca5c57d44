"""What consensus reads: messages, certificates, epochs, operations; and what a replica makes of it.

Where `shoal verify` has a second parser of the same bytes, both are asked: what the node takes, the
second must read alike.
"""

from collections.abc import Iterator
from functools import cache

from shoal.consensus.attest import Attestor, AttestorConfig
from shoal.consensus.certificate import Certificate, parse_certificate, verify_certificate
from shoal.consensus.changes import Change, ChangeKind, objection
from shoal.consensus.effects import Received, Started, TimerFired
from shoal.consensus.epochs import build_chain, parse_link, split_links
from shoal.consensus.errors import ConsensusError
from shoal.consensus.evidence import evidence_of_votes
from shoal.consensus.ledger import Ledger
from shoal.consensus.messages import (
    Epochs,
    Message,
    Stability,
    decode,
    encode,
    is_attestation,
    read_view_change_statement,
)
from shoal.consensus.records import Checkpoint, operation_bytes, operation_digest, parse_operation
from shoal.consensus.replica import Replica
from shoal.consensus.state import Config
from shoal.consensus.validators import STABILITY_INTERVAL, Verifier
from shoal.consensus.validity import validate
from shoal.consensus.votes import VoteKind
from shoal.node.statements import statement_reader
from shoal.node.verify_formats import Fields
from shoal.node.verify_formats import parse_certificate as parse_certificate_again
from shoal.node.verify_formats import parse_link as parse_link_again
from shoal.node.verify_formats import parse_operation as parse_operation_again
from tests.consensus.mesh import MESH_ID, Mesh
from tests.consensus.test_messages import examples
from tests.node.certified import MESH as CERTIFIED
from tests.node.certified import as_list

DIGEST = b"\x05" * 32
LIAR = 3
PARAMETERS_MIN = 40


@cache
def _mesh() -> Mesh:
    return Mesh(4)


def _believe(public: bytes, message: bytes, signature: bytes) -> bool:
    """Signatures that no fuzzer could make are taken for good."""
    del public, message, signature
    return True


def _believe_the_liar(public: bytes, message: bytes, signature: bytes) -> bool:
    """One validator of four, f, is in the attacker's hands: it may sign whatever it likes."""
    mesh = _mesh()
    return public == mesh.keys[LIAR] or mesh.keyring.verify(public, message, signature)


def message(data: bytes) -> None:
    """One message: there is only one encoding of what is accepted."""
    try:
        found = decode(data)
    except ConsensusError:
        return
    assert encode(found) == data
    is_attestation(data)


def message_seeds() -> list[bytes]:
    """Every kind."""
    links = tuple(parse_link(link) for link in CERTIFIED.links)
    ready = _certificates()[0]
    more: list[Message] = [
        Epochs(links, ready),
        Epochs((), None),
        Stability(ready, _mesh().genesis.snapshot()),
    ]
    return [encode(each) for each in (*examples(), *more)]


def _certificates() -> list[Certificate]:
    mesh = _mesh()
    return [
        mesh.certificate(kind, signers, view=view, sequence=4, digest=DIGEST)
        for kind, signers, view in (
            (VoteKind.READY, [0, 1, 2], 0),
            (VoteKind.PREPARE, [0, 1, 2], 1),
            (VoteKind.COMMIT, [1, 2, 3], 2),
            (VoteKind.STABLE, [0, 1, 2, 3], 0),
            (VoteKind.ATTEST, [0, 2], 3),
        )
    ]


def certificate(data: bytes) -> None:
    """Signatures of a quorum."""
    try:
        found = parse_certificate(data)
    except ConsensusError:
        return
    assert found.to_bytes() == data
    fields = Fields(data, "certificate")
    again = parse_certificate_again(fields)
    fields.end()
    assert (again.kind, again.digest, again.signers) == (found.kind, found.digest, found.signers)
    assert again.signatures == found.signatures
    mesh = _mesh()
    for verify in (_believe, mesh.keyring.verify):
        try:
            verify_certificate(found, mesh.validators, verify)
        except ConsensusError:
            continue
        assert len(set(found.signers)) >= mesh.validators.quorum


def certificate_seeds() -> list[bytes]:
    """Every kind that there is."""
    return [each.to_bytes() for each in _certificates()]


def epochs(data: bytes) -> None:
    """A chain of epochs as it comes with a checkpoint (epochs.bin)."""
    try:
        links = split_links(data)
    except ConsensusError:
        return
    assert as_list(links) == data
    for each in links:
        try:
            found = parse_link(each)
        except ConsensusError:
            continue
        assert found.to_bytes() == each
        again = parse_link_again(each)
        assert again.epoch.validators == found.record.keys
        assert again.epoch.digest == found.record.digest
    try:
        chain = build_chain(links, CERTIFIED.genesis.first_epoch(), STABILITY_INTERVAL, _believe)
    except ConsensusError:
        return
    assert chain.last == len(links)


def epochs_seeds() -> list[bytes]:
    """No link, one, two."""
    links = CERTIFIED.links
    return [as_list(links[:count]) for count in range(len(links) + 1)]


def ledger(data: bytes) -> None:
    """The replicated state as it comes with a stability certificate."""
    try:
        found = Ledger.restore(data)
    except ConsensusError:
        return
    assert found.snapshot() == data


def ledger_seeds() -> list[bytes]:
    """The first one, and one with something in every part of it."""
    mesh = Mesh(4, spare=1)
    first = mesh.genesis.snapshot()
    mesh.order([mesh.join(), mesh.leave(0), mesh.checkpoint(mesh.record())])
    mesh.submit(1, mesh.approve(Change(ChangeKind.PROMOTE, mesh.keys[4]), 1))
    mesh.deliver()
    return [first, mesh.replicas[1].ledger.snapshot()]


def operation(data: bytes) -> None:
    """What anybody may hand in: it is read, judged and tried on the ledger."""
    try:
        found = parse_operation(data)
    except ConsensusError:
        return
    assert operation_bytes(found) == data
    # The second parser asks for parameters that can be some, which are opaque to consensus.
    if isinstance(found, Checkpoint) and len(found.record.parameters) >= PARAMETERS_MIN:
        assert parse_operation_again(data)[0].digest == found.record.digest
    mesh = _mesh()
    reader = statement_reader(MESH_ID)
    for verify in (_believe, mesh.keyring.verify):
        verifier = Verifier(mesh.validators, verify, read_statement=reader)
        read_view_change_statement(data, verifier)
        reason = validate(found, verifier)
        assert reason is None or reason
    state = Ledger.restore(mesh.genesis.snapshot())
    state.execute(1, found, operation_digest(data))
    assert Ledger.restore(state.snapshot()).snapshot() == state.snapshot()


def operation_seeds() -> list[bytes]:
    """Joins, leaves, approvals, evidence, checkpoints."""
    mesh = _mesh()
    one, other = (
        mesh.vote(VoteKind.PREPARE, LIAR, view=0, sequence=5, digest=digest)
        for digest in (DIGEST, bytes(32))
    )
    return [
        mesh.join(),
        mesh.leave(2),
        mesh.rejoin(1, time_ms=9, validates=False),
        mesh.approve(Change(ChangeKind.DEMOTE, mesh.keys[0]), 1),
        mesh.approve(Change(ChangeKind.PARAMETERS, parameters=b"parameters"), 1),
        mesh.approve(objection(mesh.keys[0], 64), 1),
        operation_bytes(evidence_of_votes(one, other, mesh.keys[LIAR])),
        mesh.checkpoint(mesh.record()),
        CERTIFIED.operation,
    ]


def replica(data: bytes) -> None:
    """What a validator makes of messages that a lying one sends it: anything but an exception.

    data: messages, each after its length in two bytes. An exception here would end the node.
    """
    mesh = _mesh()
    sign = mesh.signers[1]
    honest = Replica.restore(
        Config(me=mesh.keys[1], read_statement=statement_reader(MESH_ID)),
        mesh.genesis,
        {},
        sign=sign,
        verify=_believe_the_liar,
    )
    attestor = Attestor(
        AttestorConfig(validators=mesh.validators, me=mesh.keys[1]),
        {},
        sign=sign,
        verify=_believe_the_liar,
    )
    honest.step(0, Started(0))
    now_ms = 0
    for each in _messages(data):
        now_ms += 500
        machine: Replica | Attestor = attestor if is_attestation(each) else honest
        machine.step(now_ms, Received(mesh.keys[LIAR], each))
    honest.step(now_ms + 5_000, TimerFired("status"))
    honest.step(now_ms + 5_000, TimerFired("view"))
    honest.inspect()


def _messages(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        yield data[at + 2 : at + 2 + size]
        at += 2 + size


def replica_seeds() -> list[bytes]:
    """Each message by itself, and all of them in a row."""
    told = [len(each).to_bytes(2, "big") + each for each in message_seeds()]
    return [*told, b"".join(told), b"".join(reversed(told))]
