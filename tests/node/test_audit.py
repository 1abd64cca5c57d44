"""`shoal audit` on what a real mesh left behind: it finds what was changed, and what a quorum that
lies has signed."""

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from shoal.consensus.certificate import Certificate
from shoal.consensus.records import (
    Checkpoint,
    CheckpointRecord,
    operation_bytes,
    operation_digest,
    parse_operation,
)
from shoal.consensus.votes import VoteKind, vote_bytes
from shoal.gossip.anchor import Anchor
from shoal.gossip.delta import Delta, make_delta
from shoal.gossip.parameters import EpochParameters
from shoal.node import cli
from shoal.node.audit import Audit, audit_all, audit_checkpoint
from shoal.node.checkpoints import CheckpointFiles, CheckpointStore, read_checkpoint, read_list
from shoal.node.errors import BAD_INPUT, DAMAGED, OK, DamagedError, UserError
from shoal.node.genesis import anchor_from_bytes, anchor_to_bytes, load_genesis
from shoal.node.identity import Identity
from shoal.node.verify import verify_checkpoint
from shoal.node.verify_formats import Refused
from tests.node.certified import as_list
from tests.node.mesh import found_mesh, running, until

pytestmark = pytest.mark.xdist_group("audit")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The directories of four nodes that committed two checkpoints together and stopped."""
    directories = found_mesh(tmp_path_factory.mktemp("audited") / "mesh")

    async def story() -> None:
        async with running(directories, rounds=6, retention__keep_whole=50) as nodes:

            def all_have_two() -> bool:
                return all(
                    any(c.height == 2 and c.materialised for c in node.node.status().checkpoints)
                    for node in nodes
                )

            await until(all_have_two, nodes)

    asyncio.run(story())
    return directories


@pytest.fixture
def node(mesh: list[Path], tmp_path: Path) -> Path:
    """A copy of one of them to spoil."""
    return Path(shutil.copytree(mesh[0], tmp_path / "node"))


def deltas_of(checkpoint: Path) -> list[bytes]:
    return list(read_list(checkpoint / "deltas.bin", 1 << 20))


def record_of(checkpoint: Path) -> CheckpointRecord:
    operation = parse_operation((checkpoint / "operation.bin").read_bytes())
    assert isinstance(operation, Checkpoint)
    return operation.record


# --- what is as it was ----------------------------------------------------------------------------


def test_every_checkpoint_of_a_real_mesh_is_proved_and_reproduced(mesh: list[Path]) -> None:
    genesis, _, _ = load_genesis(mesh[0] / "genesis")
    for directory in mesh:
        audits, skipped = audit_all(directory)
        assert not skipped
        assert [audit.height for audit in audits][:2] == [1, 2]
        for audit in audits:
            assert audit.reproduced and audit.root == audit.certified_root
            path = directory / "checkpoints" / str(audit.height)
            proof = verify_checkpoint(path, genesis.mesh_id)
            assert proof.record.anchor_root.hex() == audit.root
            assert proof.deltas_here and proof.tolerated == 1


def test_the_table_says_who_contributed_how_much(mesh: list[Path]) -> None:
    checkpoint = mesh[0] / "checkpoints" / "2"
    audit = audit_checkpoint(checkpoint)
    cut = record_of(checkpoint).cut
    headers = [Delta.from_bytes(b, frame_bytes_max=1 << 20).header for b in deltas_of(checkpoint)]
    assert sum(share.percent for share in audit.shares) == pytest.approx(100)
    for share in audit.shares:
        member = bytes.fromhex(share.member)
        assert share.deltas == sum(entry.member == member for entry in cut)
        assert share.tokens == sum(h.tokens for h in headers if h.sender == member)
        assert share.kept > 0
    # All that moved is the sum of what each moved, so no norm exceeds the sum of the others.
    before, after = (
        anchor_of(mesh[0] / "checkpoints" / str(height)).to_weights().double() for height in (1, 2)
    )
    moved = float((after - before).norm())
    norms = [share.norm for share in audit.shares]
    assert max(norms) - (sum(norms) - max(norms)) <= moved * 1.000001
    assert moved <= sum(norms) * 1.000001
    text = "\n".join(audit.lines())
    assert "bit for bit" in text
    assert all(share.member[:16] in text for share in audit.shares)


def anchor_of(checkpoint: Path) -> Anchor:
    genesis, _, _ = load_genesis(checkpoint.parent.parent / "genesis")
    return anchor_from_bytes(genesis.schema, read_checkpoint(checkpoint, 0).anchor)


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def shoal(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def run(*words: str | Path) -> Answer:
        code = cli.main([str(word) for word in words])
        return Answer(code, *capsys.readouterr())

    return run


def test_the_commands_answer_people_and_programs(
    mesh: list[Path], shoal: Callable[..., Answer]
) -> None:
    found = shoal("audit", mesh[0])
    assert found.code == OK
    assert "checkpoint 1 of" in found.out and "checkpoint 2 of" in found.out
    facts = json.loads(shoal("audit", mesh[0] / "checkpoints" / "1", "--json").out)
    assert [audit["reproduced"] for audit in facts["audits"]] == [True]
    assert len(facts["audits"][0]["shares"]) == 4
    genesis = mesh[1] / "genesis" / "genesis.json"
    proof = shoal("verify", mesh[0], "--trust", genesis, "--json")
    assert proof.code == OK
    assert json.loads(proof.out)["proved"] is True
    other = shoal("verify", mesh[0], "--trust", "00" * 32, "--json")
    assert other.code == DAMAGED
    assert json.loads(other.out)["reason"] == "wrong-mesh"
    assert other.err.startswith("error: wrong-mesh: ") and other.err.count("\n") == 1


# --- deltas that were changed ---------------------------------------------------------------------


def _flip(blob: bytes, at: int) -> bytes:
    return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]


TAMPERED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], list[str]]] = {
    "a frame": (lambda d: [_flip(d[0], 300), *d[1:]], ["bad-frame-hash"]),
    "a signature": (lambda d: [_flip(d[0], 150), *d[1:]], ["bad-signature"]),
    "a header": (lambda d: [_flip(d[0], 90), *d[1:]], ["out-of-place"]),
    "two exchanged": (lambda d: [d[1], d[0], *d[2:]], ["out-of-place", "out-of-place"]),
    "the last left out": (lambda d: d[:-1], ["missing"]),
    "one too many": (lambda d: [*d, d[0]], ["not-in-the-cut"]),
    "one cut short": (lambda d: [d[0][:-1], *d[1:]], ["wrong-size"]),
    "one emptied": (lambda d: [b"", *d[1:]], ["truncated"]),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_deltas_that_were_changed_are_listed_and_the_rest_still_counted(
    node: Path, shoal: Callable[..., Answer], what: str
) -> None:
    change, reasons = TAMPERED[what]
    checkpoint = node / "checkpoints" / "2"
    good = deltas_of(checkpoint)
    (checkpoint / "deltas.bin").write_bytes(as_list(change(good)))
    audit = audit_checkpoint(checkpoint)
    assert not audit.reproduced
    assert [problem.reason for problem in audit.problems] == reasons
    refused = len(reasons) if "not-in-the-cut" not in reasons else 0
    assert sum(share.deltas for share in audit.shares) == len(good) - refused
    assert (audit.root == audit.certified_root) is (refused == 0)
    answer = shoal("audit", checkpoint)
    assert answer.code == DAMAGED
    assert reasons[0] in answer.err and answer.err.count("\n") == 1
    assert "NOT REPRODUCED" in answer.out


def test_a_delta_file_that_ends_too_early_is_said(node: Path) -> None:
    path = node / "checkpoints" / "2" / "deltas.bin"
    path.write_bytes(path.read_bytes()[:-10])
    assert [problem.reason for problem in audit_checkpoint(path.parent).problems] == ["bad-list"]


def test_a_second_delta_that_its_sender_signed_for_the_same_number_is_out_of_place(
    mesh: list[Path], node: Path
) -> None:
    checkpoint = node / "checkpoints" / "2"
    first, *rest = deltas_of(checkpoint)
    said = Delta.from_bytes(first, frame_bytes_max=1 << 20)
    sender = next(
        identity
        for identity in (Identity.load(directory / "identity.key") for directory in mesh)
        if identity.node_id == said.header.sender
    )
    rival = make_delta(
        said.frame,
        mesh_id=said.header.mesh_id,
        sender=said.header.sender,
        sequence=said.header.sequence,
        height=said.header.height,
        steps=said.header.steps,
        tokens=said.header.tokens + 1,
        sign=sender.sign,
    )
    (checkpoint / "deltas.bin").write_bytes(as_list([rival.to_bytes(), *rest]))
    (problem,) = audit_checkpoint(checkpoint).problems
    assert problem.reason == "out-of-place"


# --- a quorum that lies ---------------------------------------------------------------------------


def signed_by_all(mesh: list[Path], record: CheckpointRecord) -> tuple[bytes, bytes]:
    """Operation and certificate that every validator of the mesh signs, whatever they say."""
    voters = sorted(
        (Identity.load(directory / "identity.key") for directory in mesh), key=lambda i: i.node_id
    )

    def certificate(kind: VoteKind, view: int, sequence: int, digest: bytes) -> Certificate:
        message = vote_bytes(
            kind, mesh_id=record.mesh_id, epoch=0, view=view, sequence=sequence, digest=digest
        )
        signatures = tuple(voter.sign(message) for voter in voters)
        return Certificate(kind, 0, view, sequence, digest, tuple(range(4)), signatures)

    attested = certificate(VoteKind.ATTEST, record.attempt, record.height, record.digest)
    operation = operation_bytes(Checkpoint(record, attested))
    commit = certificate(VoteKind.COMMIT, 0, 9, operation_digest(operation))
    return operation, commit.to_bytes()


def lie(mesh: list[Path], node: Path, *, moved: int = 0, alpha: float = 1.0) -> Audit:
    """Checkpoint 2 as a mesh of liars would certify it: one weight moved, or another gain."""
    honest = node / "checkpoints" / "2"
    genesis, _, tokenizer = load_genesis(node / "genesis")
    files, record, deltas = read_checkpoint(honest, 2), record_of(honest), deltas_of(honest)
    anchor = anchor_from_bytes(genesis.schema, files.anchor)
    anchor.values[0] += moved
    parameters = EpochParameters.from_bytes(record.parameters[:-32])
    parameters = replace(parameters, alpha=parameters.alpha * alpha)
    record = replace(
        record,
        anchor_root=anchor.root(),
        parameters=parameters.to_bytes() + record.parameters[-32:],
    )
    operation, certificate = signed_by_all(mesh, record)
    shutil.rmtree(honest)
    CheckpointStore(node / "checkpoints").write(
        CheckpointFiles(2, operation, certificate, files.settled, anchor_to_bytes(anchor)),
        anchor,
        genesis=genesis.document,
        deltas=deltas,
        model_config=genesis.model_config,
        tokenizer=tokenizer,
        facts={},
    )
    assert len(verify_checkpoint(honest, genesis.mesh_id).signers) == 4
    return audit_checkpoint(honest)


def test_a_model_that_a_quorum_invented_is_proved_but_not_reproduced(
    mesh: list[Path], node: Path
) -> None:
    assert [problem.reason for problem in lie(mesh, node, moved=1).problems] == ["root-differs"]


def test_parameters_that_a_quorum_invented_are_found_as_well(mesh: list[Path], node: Path) -> None:
    problems = lie(mesh, node, alpha=2.0).problems
    assert [problem.reason for problem in problems] == ["parameters-differ", "settled-differs"]
    assert "alpha" in problems[0].detail


def test_the_same_liars_telling_the_truth_are_believed(mesh: list[Path], node: Path) -> None:
    assert lie(mesh, node).reproduced


# --- what was not kept ----------------------------------------------------------------------------


def test_heights_that_cannot_be_audited_are_named_and_the_others_audited(
    node: Path, shoal: Callable[..., Answer]
) -> None:
    (node / "checkpoints" / "1" / "deltas.bin").unlink()
    audits, skipped = audit_all(node)
    assert 1 in skipped and "fetched that state whole" in skipped[1]
    assert audits[0].height == 2 and audits[0].reproduced
    assert "checkpoint 1 was not audited" in shoal("audit", node).out
    shutil.rmtree(node / "checkpoints" / "1")
    for path in (node / "checkpoints").iterdir():
        if path.name != "2":
            shutil.rmtree(path)
    answer = shoal("audit", node)
    assert answer.code == BAD_INPUT
    assert "nothing in" in answer.err and "--previous" in answer.err


def test_the_checkpoint_before_may_lie_elsewhere(node: Path, tmp_path: Path) -> None:
    first = (node / "checkpoints" / "1").rename(tmp_path / "first")
    second = node / "checkpoints" / "2"
    assert audit_checkpoint(second, first).reproduced
    with pytest.raises(UserError, match="name it with --previous"):
        audit_checkpoint(second)
    with pytest.raises(DamagedError, match="is not the checkpoint that"):
        audit_checkpoint(second, second)
    with pytest.raises(UserError, match="genesis"):
        audit_checkpoint(first)
    assert audit_checkpoint(first, node / "genesis").reproduced
    with pytest.raises(UserError, match="goes with one checkpoint"):
        audit_all(node, first)


def test_a_damaged_beginning_is_refused(node: Path) -> None:
    path = node / "genesis" / "anchor.bin"
    path.write_bytes(_flip(path.read_bytes(), 5))
    with pytest.raises(DamagedError, match="Merkle root"):
        audit_checkpoint(node / "checkpoints" / "1")
    for name in ("settled.bin", "operation.bin"):
        path = node / "checkpoints" / "1" / name
        good = path.read_bytes()
        path.write_bytes(_flip(good, len(good) // 2))
        with pytest.raises(DamagedError):
            audit_checkpoint(node / "checkpoints" / "2")
        path.write_bytes(good)
    (chunk,) = (node / "checkpoints" / "1" / "chunks").iterdir()
    chunk.write_bytes(_flip(chunk.read_bytes(), 5))
    with pytest.raises(DamagedError, match="not the one that was certified"):
        audit_checkpoint(node / "checkpoints" / "2")


def test_a_checkpoint_that_is_not_proved_is_not_audited(node: Path) -> None:
    checkpoint = node / "checkpoints" / "2"
    path = checkpoint / "certificate.bin"
    path.write_bytes(_flip(path.read_bytes(), 100))
    with pytest.raises(Refused, match="commit-signature"):
        audit_all(node)
