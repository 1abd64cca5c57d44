"""A certificate convinces exactly when a quorum of this epoch signed exactly this."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.consensus.certificate import Certificate, parse_certificate, verify_certificate
from shoal.consensus.errors import ConsensusError
from shoal.consensus.validators import Validators
from shoal.consensus.votes import VoteKind, vote_bytes
from tests.consensus.mesh import Mesh
from tests.simulation.verifier import certificate_problem

MESH = Mesh(4)
DIGEST = b"\x07" * 32
COMMITTED = MESH.certificate(VoteKind.COMMIT, [0, 1, 3], view=2, sequence=3, digest=DIGEST)
PREPARED = MESH.certificate(VoteKind.PREPARE, [0, 1, 3], view=1, sequence=9, digest=DIGEST)


def check(certificate: Certificate, validators: Validators = MESH.validators) -> None:
    verify_certificate(certificate, validators, MESH.keyring.verify)


def independent(certificate: Certificate) -> str | None:
    return certificate_problem(
        certificate.to_bytes(),
        mesh_id=MESH.validators.mesh_id,
        epoch=0,
        keys=MESH.validators.keys,
        interval=MESH.validators.interval,
        verify=MESH.keyring.verify,
    )


def test_a_quorum_convinces_and_so_do_its_bytes() -> None:
    for certificate in (COMMITTED, PREPARED):
        check(parse_certificate(certificate.to_bytes()))
        assert parse_certificate(certificate.to_bytes()) == certificate
        assert independent(certificate) is None


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda c: replace(c, epoch=1), "wrong-epoch"),
        (lambda c: replace(c, view=3), "bad-signature"),
        (lambda c: replace(c, sequence=10), "bad-signature"),
        (lambda c: replace(c, digest=bytes(32)), "bad-signature"),
        # Bug 5 (raijin #17): PREPAREs must not make a commit quorum, nor the other way round.
        (lambda c: replace(c, kind=VoteKind.STABLE, view=0), "bad-signature"),
        (lambda c: replace(c, kind=VoteKind.PREPARE), "no-pre-prepare"),
        (lambda c: replace(c, signers=(0, 1), signatures=c.signatures[:2]), "no-quorum"),
        # Bug 23 (ASA-2024-011): the index is out of range before it is used.
        (lambda c: replace(c, signers=(0, 1, 4)), "unknown-signer"),
        (lambda c: replace(c, signers=(0, 0, 1)), "bad-bitmap"),
        (lambda c: replace(c, signers=(1, 0, 3)), "bad-bitmap"),
        # Bug 24 (GHSA-hrhf-2vcr-ghch): more bits than signatures.
        (lambda c: replace(c, signers=(0, 1, 2, 3)), "bad-bitmap"),
        # Bug 1 (raijin #5): the right signers, but not their signatures.
        (lambda c: replace(c, signatures=(c.signatures[0],) * 3), "bad-signature"),
    ],
)
def test_everything_else_is_refused(
    spoil: Callable[[Certificate], Certificate], reason: str
) -> None:
    with pytest.raises(ConsensusError) as caught:
        check(spoil(COMMITTED))
    assert caught.value.reason == reason


def test_a_prepared_certificate_needs_the_primary_of_its_view() -> None:
    without = MESH.certificate(VoteKind.PREPARE, [0, 2, 3], view=1, sequence=3, digest=DIGEST)
    with pytest.raises(ConsensusError, match="no-pre-prepare"):
        check(without)
    assert independent(without) == "no pre-prepare"


def test_bug_21_the_set_of_another_epoch_or_mesh_does_not_verify_it() -> None:
    later = Validators(MESH.validators.mesh_id, 1, MESH.validators.keys)
    other = Validators(bytes(32), 0, MESH.validators.keys)
    with pytest.raises(ConsensusError, match="wrong-epoch"):
        check(COMMITTED, later)
    with pytest.raises(ConsensusError, match="bad-signature"):
        check(COMMITTED, other)


@given(st.binary(max_size=400))
def test_hostile_bytes_raise_nothing_but_our_error(data: bytes) -> None:
    try:
        certificate = parse_certificate(bytes([VoteKind.COMMIT]) + data)
    except ConsensusError:
        return
    assert certificate.to_bytes() == bytes([VoteKind.COMMIT]) + data


def test_kinds_that_nobody_certifies_and_bits_beyond_31_are_refused() -> None:
    data = bytearray(COMMITTED.to_bytes())
    data[0] = VoteKind.CANDIDATE
    with pytest.raises(ConsensusError, match="bad-certificate-kind"):
        parse_certificate(bytes(data))
    data = bytearray(COMMITTED.to_bytes())
    data[57] = 0x80
    with pytest.raises(ConsensusError, match="bad-bitmap"):
        parse_certificate(bytes(data))


def test_the_signed_layout_is_99_bytes_and_separates_everything() -> None:
    fields = {"mesh_id": bytes(32), "epoch": 1, "view": 2, "sequence": 3, "digest": DIGEST}
    base = vote_bytes(VoteKind.COMMIT, **fields)  # type: ignore[arg-type]
    assert len(base) == 99
    assert base.startswith(b"SHOAL-BFT\x01\x03")
    changes: list[dict[str, object]] = [{"mesh_id": DIGEST}, {"epoch": 2}, {"view": 3}]
    changes += [{"sequence": 4}, {"digest": bytes(32)}]
    others = [vote_bytes(VoteKind.COMMIT, **{**fields, **change}) for change in changes]  # type: ignore[arg-type]
    others += [vote_bytes(kind, **fields) for kind in VoteKind if kind is not VoteKind.COMMIT]  # type: ignore[arg-type]
    assert len({base, *others}) == 12
