"""`shoal verify` against forged signatures: certificates, records and chains of epochs."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.consensus.certificate import Certificate
from shoal.consensus.votes import VoteKind
from shoal.node.mesh_parameters import encode
from shoal.node.parameters import MeshParameters
from shoal.node.verify import verify_checkpoint
from tests.node.certified import MESH, CertifiedMesh, as_list, keys, refusal

# --- forged certificates --------------------------------------------------------------------------

COMMIT = MESH.commit(MESH.operation)
ANOTHER = CertifiedMesh("ABCD", "ABCDE", "BCDE", name="another")
SWAPPED = (COMMIT.signatures[1], COMMIT.signatures[0], *COMMIT.signatures[2:])


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (replace(COMMIT, signatures=SWAPPED), "commit-signature"),
        (MESH.commit(MESH.operation, signers=(1, 2)), "commit-quorum"),
        (replace(COMMIT, signers=(), signatures=()), "commit-quorum"),
        (replace(COMMIT, signatures=COMMIT.signatures[:1] * 3), "commit-signature"),
        (MESH.commit(MESH.operation, voters=MESH.sets[0]), "commit-signature"),
        (MESH.commit(MESH.operation, epoch=1, voters=MESH.sets[1]), "commit-epoch"),
        (MESH.commit(MESH.operation, voters=keys("WXYZ")), "commit-signature"),
        (MESH.commit(MESH.operation, voters=keys("BCDEF")), "commit-signer"),
        (MESH.commit(ANOTHER.operation), "commit-subject"),
        (MESH.commit(MESH.operation, sequence=20), "commit-position"),
        (replace(COMMIT, view=3), "commit-signature"),
        (replace(COMMIT, kind=VoteKind.PREPARE), "commit-kind"),
        (ANOTHER.commit(MESH.operation), "commit-signature"),
    ],
    ids=[
        "signatures swapped",
        "quorum one short",
        "nobody signed",
        "one signer counted three times",
        "an earlier set under this epoch's number",
        "really of the epoch before",
        "strangers",
        "a signer beyond the set",
        "of another operation",
        "of a sequence of the epoch before",
        "another view",
        "prepared only",
        "of another mesh",
    ],
)
def test_a_forged_commit_certificate(
    directory: Path, certificate: Certificate, reason: str
) -> None:
    (directory / "certificate.bin").write_bytes(certificate.to_bytes())
    assert refusal(directory).reason == reason


@pytest.mark.parametrize(
    ("attested", "reason"),
    [
        ({"signers": (0, 1)}, "attestation-quorum"),
        ({"epoch": 1, "voters": MESH.sets[1]}, "attestation-epoch"),
        ({"voters": MESH.sets[0]}, "attestation-signature"),
        ({"digest": bytes(32)}, "attestation-subject"),
        ({"view": 0}, "attestation-position"),
        ({"sequence": 4}, "attestation-position"),
        ({"kind": VoteKind.COMMIT}, "attestation-kind"),
        ({"voters": keys("BCDEF")}, "attestation-signer"),
    ],
)
def test_an_attestation_that_does_not_hold(
    directory: Path, attested: dict[str, object], reason: str
) -> None:
    MESH.recommit(directory, MESH.record, **attested)
    assert refusal(directory).reason == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mesh_id": bytes(32)}, "record-mesh"),
        ({"height": 6}, "record-height"),
        ({"proposer": MESH.sets[-1][0].id}, "record-proposer"),
        ({"round": 3}, "malformed-operation"),
        ({"cut": MESH.record.cut[::-1]}, "malformed-operation"),
        ({"parameters": b"short"}, "malformed-operation"),
        ({"parameters": bytes(8) + MESH.record.parameters[8:]}, "record-parameters"),
        ({"anchor_root": bytes(32)}, "manifest-root"),
        ({"parameters": MESH.record.parameters[:-32] + bytes(32)}, "settled"),
        ({"cut": MESH.record.cut[:2]}, "deltas-count"),
        ({"cut": (replace(MESH.record.cut[0], sequence=2), *MESH.record.cut[1:])}, "delta-header"),
    ],
)
def test_a_record_that_contradicts_the_directory_whoever_signed_it(
    directory: Path, changes: dict[str, object], reason: str
) -> None:
    MESH.recommit(directory, replace(MESH.record, **changes))  # type: ignore[arg-type]
    assert refusal(directory).reason == reason


def test_the_first_checkpoint_follows_from_the_genesis(tmp_path: Path) -> None:
    mesh = CertifiedMesh("ABCD")
    mesh.height = 1
    directory = mesh.write(tmp_path)
    assert refusal(directory, mesh.mesh_id).reason == "record-parent"
    mesh.recommit(directory, replace(mesh.record, parent=mesh.mesh_id))
    assert verify_checkpoint(directory, mesh.mesh_id).record.height == 1


def test_a_checkpoint_under_another_height_is_refused(directory: Path) -> None:
    assert refusal(directory.rename(directory.with_name("6"))).reason == "record-height"
    named = directory.with_name("6").rename(directory.with_name("release"))
    assert verify_checkpoint(named, MESH.mesh_id).record.height == 5


def test_an_operation_that_is_no_checkpoint_is_refused(directory: Path) -> None:
    for operation in (b"", b"\x02" + MESH.operation[1:]):
        (directory / "operation.bin").write_bytes(operation)
        (directory / "certificate.bin").write_bytes(MESH.commit(operation).to_bytes())
        assert refusal(directory).reason == "malformed-operation"


# --- forged chains of epochs ----------------------------------------------------------------------

FIRST, SECOND = MESH.links
ATTACKER = CertifiedMesh("WXYZ", "VWXYZ", "BCDE")
TAKEN_OVER = CertifiedMesh("ABCD", "WXYZ", "BCDE")
LATE = MESH.epoch_record(1, start=0)
LOOSE = MESH.epoch_record(2, parent=bytes(32))
SHUFFLED = MESH.epoch_record(1)
SHUFFLED = SHUFFLED[:81] + SHUFFLED[113:145] + SHUFFLED[81:113] + SHUFFLED[145:]
DOUBLED = SHUFFLED[:81] + SHUFFLED[81:113] * 2 + SHUFFLED[145:]


@pytest.mark.parametrize(
    ("links", "reason"),
    [
        ((SECOND,), "epoch-order"),
        ((SECOND, FIRST), "epoch-order"),
        ((FIRST, FIRST), "epoch-order"),
        ((FIRST,), "commit-epoch"),
        ((), "commit-epoch"),
        ((FIRST, SECOND, MESH.link(2)), "epoch-order"),
        ((FIRST, MESH.link(2, voters=MESH.sets[0])), "epoch-quorum"),
        ((MESH.link(1, voters=keys("ABCDE")), SECOND), "epoch-signer"),
        ((MESH.link(1, voters=MESH.sets[2]), SECOND), "epoch-signature"),
        ((FIRST, MESH.link(2, voters=keys("VWXYZ"))), "epoch-signature"),
        (ATTACKER.links, "epoch-mesh"),
        ((TAKEN_OVER.link(1, voters=keys("WXYZ")), TAKEN_OVER.links[1]), "epoch-signature"),
        ((MESH.link(1, record=LATE), SECOND), "epoch-start"),
        ((FIRST, MESH.link(2, record=LOOSE)), "epoch-parent"),
        ((MESH.link(1, record=SHUFFLED), SECOND), "malformed-epoch-link"),
        ((MESH.link(1, record=DOUBLED), SECOND), "malformed-epoch-link"),
        ((MESH.link(1, digest=bytes(32)), SECOND), "epoch-subject"),
        ((MESH.link(1, kind=VoteKind.COMMIT), SECOND), "epoch-kind"),
        ((MESH.link(1, view=1), SECOND), "epoch-position"),
        ((MESH.link(1, sequence=11), SECOND), "epoch-position"),
        ((MESH.link(1, epoch=1), SECOND), "epoch-epoch"),
    ],
    ids=[
        "first link left out",
        "reordered",
        "a link twice",
        "last link left out",
        "all left out",
        "last link twice",
        "signed by an older set",
        "signed by the new set itself",
        "signed by a later set",
        "signed by strangers",
        "the chain of an attacker's genesis",
        "a set of strangers that signed for itself",
        "starts where the old one did",
        "of another parent",
        "validators out of order",
        "a validator twice",
        "about another ledger",
        "of another kind",
        "of a view",
        "of another sequence",
        "of another epoch",
    ],
)
def test_a_forged_epoch_chain(directory: Path, links: Sequence[bytes], reason: str) -> None:
    (directory / "epochs.bin").write_bytes(as_list(links))
    assert refusal(directory).reason == reason


def test_an_attackers_whole_mesh_holds_together_and_is_still_not_the_trusted_one(
    tmp_path: Path,
) -> None:
    directory = ATTACKER.write(tmp_path)
    assert refusal(directory, MESH.mesh_id).reason == "wrong-mesh"
    assert verify_checkpoint(directory).mesh_id == ATTACKER.mesh_id
    shutil.copy(directory / "genesis.json", directory / "theirs")
    (directory / "genesis.json").write_bytes(MESH.genesis.document)
    assert refusal(directory, MESH.mesh_id).reason == "epoch-mesh"


# --- the mesh's parameters ------------------------------------------------------------------------


def decided(steps: int = 0, trusted: int = 1000, **changes: object) -> CertifiedMesh:
    """A mesh whose validators changed its parameters; its checkpoint's density did not change."""
    wish = replace(MeshParameters(), **changes)  # type: ignore[arg-type]
    return CertifiedMesh("ABCD", "ABCDE", parameters=encode(wish), steps=steps, trust=trusted)


def test_a_record_of_another_density_than_the_mesh_decided_is_refused(tmp_path: Path) -> None:
    mesh = decided(budget=1.0)
    directory = mesh.write(tmp_path)
    assert refusal(directory, mesh.mesh_id).reason == "record-density"


@pytest.mark.parametrize(
    ("normalised", "steps", "with_deltas", "sound"),
    [
        (True, 2, True, True),
        (True, 3, True, False),
        (True, 0, True, False),
        (True, 0, False, False),
        (True, 3, False, True),  # what cannot be recomputed is the quorum's word
        (False, 2, True, False),
    ],
)
def test_the_usual_steps_are_those_of_the_deltas_in_the_cut(
    normalised: bool, steps: int, with_deltas: bool, sound: bool, tmp_path: Path
) -> None:
    mesh = decided(steps, normalise_steps=normalised)
    directory = mesh.write(tmp_path)
    if not with_deltas:
        (directory / "deltas.bin").unlink()
    if sound:
        assert verify_checkpoint(directory).in_force["normalise_steps"] is True
    else:
        assert refusal(directory, mesh.mesh_id).reason == "record-steps"


@pytest.mark.parametrize(
    ("trust", "permille", "sound"),
    [(True, 100, True), (True, 1000, True), (False, 1000, True), (False, 100, False)],
)
def test_without_trust_nobody_is_believed_less(
    trust: bool, permille: int, sound: bool, tmp_path: Path
) -> None:
    mesh = decided(trusted=permille, trust=trust)
    directory = mesh.write(tmp_path)
    if sound:
        assert verify_checkpoint(directory).in_force["trust"] is trust
    else:
        assert refusal(directory, mesh.mesh_id).reason == "record-trust"


def test_what_the_mesh_decided_is_said(tmp_path: Path) -> None:
    proof = verify_checkpoint(decided(clip_factor=3.0, local_steps=16).write(tmp_path))
    assert proof.changed == ("local_steps", "clip_factor")
    assert "local_steps 16, clip_factor 3.0 by decision" in "\n".join(proof.lines())
    assert proof.to_json()["mesh_parameters"]["clip_factor"] == 3.0
    plain = verify_checkpoint(MESH.write(tmp_path / "other"))
    assert plain.changed == (), "bytes that say nothing change nothing"
    assert "the mesh parameters of the genesis" in "\n".join(plain.lines())
