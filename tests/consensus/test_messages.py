"""One encoding, and nothing that a stranger can write crashes the reader."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.consensus.errors import ConsensusError
from shoal.consensus.messages import (
    MAX_MESSAGE_BYTES,
    Candidate,
    CommitProof,
    Message,
    NewView,
    PrePrepare,
    Request,
    Stability,
    Status,
    ViewChange,
    decode,
    encode,
    is_attestation,
)
from shoal.consensus.votes import VoteKind
from tests.consensus.mesh import Mesh

MESH = Mesh(4)
DIGEST = b"\x05" * 32


def examples() -> list[Message]:
    """At least one message of every kind."""
    stable = MESH.certificate(VoteKind.STABLE, [0, 1, 2], view=0, sequence=4, digest=DIGEST)
    prepared = MESH.certificate(VoteKind.PREPARE, [0, 1, 2], view=0, sequence=5, digest=DIGEST)
    committed = MESH.certificate(VoteKind.COMMIT, [1, 2, 3], view=0, sequence=5, digest=DIGEST)
    change = ViewChange(0, 3, 1, 4, stable, (prepared,), b"s" * 64)
    first = ViewChange(0, 3, 2, 0, None, (), b"t" * 64)
    votes = [
        MESH.vote(kind, 1, view=2, sequence=3, digest=DIGEST)
        for kind in VoteKind
        if kind not in (VoteKind.PRE_PREPARE, VoteKind.CANDIDATE)
    ]
    proposal = MESH.vote(VoteKind.PRE_PREPARE, 0, view=0, sequence=5, digest=DIGEST)
    record = MESH.record()
    candidate = MESH.vote(VoteKind.CANDIDATE, 1, view=0, sequence=1, digest=record.digest)
    return [
        *votes,
        PrePrepare(proposal, MESH.join()),
        Candidate(candidate, record),
        change,
        first,
        NewView(0, 3, 3, (change, first), ((DIGEST, b"u" * 64), (DIGEST, b"v" * 64))),
        Status(0, 3, 1, False, 7, 4, 0b1011, b"\x01\x03", (DIGEST,), 2, b"w" * 64),
        CommitProof(MESH.join(), committed),
        Stability(stable, b"ledger"),
        Request(MESH.join()),
    ]


@pytest.mark.parametrize("message", examples(), ids=lambda m: type(m).__name__)
def test_what_is_encoded_is_what_is_decoded(message: Message) -> None:
    data = encode(message)
    assert decode(data) == message
    with pytest.raises(ConsensusError):
        decode(data[:-1] if not isinstance(message, Request) else b"")
    if not isinstance(message, Request):
        with pytest.raises(ConsensusError, match="trailing-bytes"):
            decode(data + b"\x00")


@given(st.binary(max_size=600))
@settings(max_examples=300)
def test_arbitrary_bytes_raise_nothing_but_our_error(data: bytes) -> None:
    for kind in range(14):
        try:
            message = decode(bytes([kind]) + data)
        except ConsensusError:
            continue
        assert encode(message) == bytes([kind]) + data, "there is only one encoding"


@given(st.randoms(use_true_random=False), st.sampled_from(examples()))
@settings(max_examples=300)
def test_broken_messages_raise_nothing_but_our_error(rng: random.Random, message: Message) -> None:
    data = bytearray(encode(message))
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        decoded = decode(bytes(data))
    except ConsensusError:
        return
    assert encode(decoded) == bytes(data)


def test_nothing_is_read_from_what_is_too_large_or_empty() -> None:
    with pytest.raises(ConsensusError, match="too-large"):
        decode(bytes(MAX_MESSAGE_BYTES + 1))
    with pytest.raises(ConsensusError, match="truncated"):
        decode(b"")


def test_counts_are_bounded_before_anything_is_read() -> None:
    status = Status(0, 0, 1, True, 0, 0, 0, bytes(17), (), 0)
    with pytest.raises(ConsensusError, match="too-many"):
        decode(encode(status))
    many = replace(status, slots=b"", wanted=(DIGEST,) * 33)
    with pytest.raises(ConsensusError, match="too-many"):
        decode(encode(many))


def test_the_router_knows_whose_a_message_is() -> None:
    attestation = {type(m).__name__: is_attestation(encode(m)) for m in examples()[5:]}
    assert [name for name, yes in attestation.items() if yes] == ["Candidate"]
    assert is_attestation(encode(MESH.vote(VoteKind.ATTEST, 0, view=0, sequence=1, digest=DIGEST)))
    assert not is_attestation(b"")
