"""`shoal verify` against forgers: whatever they change in a directory, it is refused by name."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.consensus.records import operation_bytes
from shoal.gossip.anchor import Anchor
from shoal.gossip.manifest import Manifest
from shoal.node.errors import UserError
from shoal.node.verify import Proof, trusted_mesh, verify_checkpoint
from tests.node.certified import MESH, MESHES, SCHEMA, as_list, refusal

FLIPS_PER_FILE = 48


@pytest.mark.parametrize("epoch", [0, 2])
def test_what_a_quorum_certified_is_proved(written: dict[int, Path], epoch: int) -> None:
    mesh = MESHES[epoch]
    proof: Proof = verify_checkpoint(written[epoch], mesh.mesh_id)
    assert (proof.mesh_id, proof.named) == (mesh.mesh_id, True)
    assert (proof.record.height, proof.record.round, proof.epoch.number) == (5, 4, epoch)
    assert proof.record.anchor_root == mesh.anchor.root()
    assert proof.record.digest == mesh.record.digest
    assert proof.signers == proof.attested_by == tuple(key.id for key in mesh.sets[-1][1:])
    assert (proof.parameters, proof.chunks, proof.deltas_here) == (SCHEMA.layout.total, 3, True)
    text = "\n".join(proof.lines())
    for fact in (mesh.mesh_id.hex(), proof.record.anchor_root.hex(), "3 of 4, 3 needed, 1 may lie"):
        assert fact in text
    assert "backdoor" in text and "checkpoint.json" in text
    assert json.loads(json.dumps(proof.to_json()))["epoch"] == epoch


def test_without_a_trusted_mesh_it_says_whom_it_believed(written: dict[int, Path]) -> None:
    proof = verify_checkpoint(written[2])
    assert not proof.named
    assert "compare it" in "\n".join(proof.lines())


def test_a_mesh_is_named_by_its_id_or_by_its_genesis(written: dict[int, Path]) -> None:
    assert trusted_mesh(MESH.mesh_id.hex()) == MESH.mesh_id
    assert trusted_mesh(str(written[2] / "genesis.json")) == MESH.mesh_id
    with pytest.raises(UserError, match="neither a mesh id"):
        trusted_mesh("the mesh of my friends")


# --- one byte of any file -------------------------------------------------------------------------

# What may be the reason when a byte of this file is not what was written.
REASONS = {
    "genesis.json": ("wrong-mesh",),
    "epochs.bin": ("epoch-", "malformed-epoch-", "commit-epoch"),
    "operation.bin": ("commit-subject",),
    "certificate.bin": ("commit-", "malformed-certificate"),
    "settled.bin": ("settled",),
    "manifest.bin": ("manifest-",),
    "config.json": ("config",),
    "tokenizer.json": ("tokenizer",),
    "tokenizer_config.json": ("tokenizer",),
    "deltas.bin": ("delta-", "deltas-"),
    "model.safetensors": ("weights",),
    "chunks": ("chunk",),
}


def certified_files(directory: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Every file but checkpoint.json, with the reasons that a change in it may have."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != "checkpoint.json":
            first = path.relative_to(directory).parts[0]
            yield path, REASONS[first]


def offsets(size: int) -> list[int]:
    """The first and the last bytes, leaf edges, and some spread over the rest."""
    spread = range(0, size, max(1, size // FLIPS_PER_FILE))
    edges = {0, 1, 7, 8, 9, 65535, 65536, size // 2, size - 2, size - 1}
    return sorted({at for at in {*spread, *edges} if 0 <= at < size})


@pytest.mark.parametrize("epoch", [0, 2])
def test_one_byte_of_any_file_is_refused_by_name(
    written: dict[int, Path], tmp_path: Path, epoch: int
) -> None:
    directory = Path(shutil.copytree(written[epoch], tmp_path / "5"))
    tried = set()
    for path, reasons in certified_files(directory):
        with path.open("r+b") as file:
            for at in offsets(path.stat().st_size):
                file.seek(at)
                (byte,) = file.read(1)
                file.seek(at)
                file.write(bytes([byte ^ (1 << at % 8)]))
                file.flush()
                found = refusal(directory, MESHES[epoch].mesh_id)
                assert found.reason.startswith(reasons), f"{path.name} at {at}: {found}"
                file.seek(at)
                file.write(bytes([byte]))
                file.flush()
                tried.add(path.name)
    assert len(tried) == 11 + 3
    verify_checkpoint(directory, MESHES[epoch].mesh_id)


def test_every_byte_of_the_signatures_counts(directory: Path) -> None:
    path = directory / "certificate.bin"
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        assert refusal(directory).reason.startswith(REASONS["certificate.bin"])


def test_a_changed_genesis_is_refused_even_where_nobody_named_the_mesh(directory: Path) -> None:
    path = directory / "genesis.json"
    path.write_bytes(path.read_bytes().replace(b'"the mesh"', b'"the mess"'))
    assert refusal(directory, trust=None).reason == "epoch-mesh"


def test_files_cut_short_or_lengthened_are_refused_by_name(directory: Path) -> None:
    for path, reasons in certified_files(directory):
        good = path.read_bytes()
        for data in (b"", good[:1], good[: len(good) // 2], good[:-1], good + b"\0", good * 2):
            path.write_bytes(data)
            found = refusal(directory)
            assert found.reason.startswith((*reasons, "too-large")), f"{path.name}: {found}"
        path.write_bytes(good)
    verify_checkpoint(directory, MESH.mesh_id)


def test_files_that_are_not_there_are_missed(directory: Path) -> None:
    for path, _ in certified_files(directory):
        if path.name == "deltas.bin":
            continue
        aside = directory.parent / "aside"
        path.rename(aside)
        in_chunks = path.parent != directory
        assert refusal(directory).reason == ("missing-chunk" if in_chunks else "missing-file")
        aside.rename(path)


def test_deltas_that_are_not_there_are_no_forgery_but_are_said(directory: Path) -> None:
    (directory / "deltas.bin").unlink()
    proof = verify_checkpoint(directory, MESH.mesh_id)
    assert not proof.deltas_here
    assert "cannot be audited" in "\n".join(proof.lines())


def test_a_file_that_is_none_or_has_no_end_is_refused(directory: Path) -> None:
    (directory / "settled.bin").unlink()
    os.mkfifo(directory / "settled.bin")
    assert refusal(directory).reason == "missing-file"
    (directory / "settled.bin").unlink()
    with (directory / "settled.bin").open("wb") as file:
        file.truncate(1 << 40)
    assert refusal(directory).reason == "too-large"


# --- forged contents ------------------------------------------------------------------------------


def _forge_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    metadata = {
        "format": "pt",
        "shoal_height": "5",
        "shoal_root": MESH.record.anchor_root.hex(),
    }
    save_file(tensors, path, metadata=metadata)


def test_weights_of_another_model_are_refused(directory: Path) -> None:
    good = (directory / "model.safetensors").read_bytes()

    def spoilt(change: Callable[[dict[str, torch.Tensor]], object]) -> str:
        (directory / "model.safetensors").write_bytes(good)
        _forge_weights(directory, change)
        return refusal(directory).reason

    def one_in_the_last_place(tensors: dict[str, torch.Tensor]) -> None:
        values = tensors["norm.weight"]
        values[3] = torch.nextafter(values[3], torch.tensor(torch.inf))

    assert spoilt(one_in_the_last_place) == "weights"
    assert spoilt(lambda t: t.update(extra=torch.zeros(1))) == "weights-header"
    assert spoilt(lambda t: t.update(scale=t["scale"].view(1))) == "weights-header"
    assert spoilt(lambda t: t.update({"scale": t["scale"].half()})) == "weights-header"
    assert spoilt(lambda t: t.pop("scale")) == "weights-header"
    _forge_weights(directory, lambda t: t.update(scale=load_scale()))
    assert verify_checkpoint(directory, MESH.mesh_id).chunks == 3


def load_scale() -> torch.Tensor:
    """The certified value of the tensor that the test above took away."""
    return MESH.anchor.to_weights()[-1].clone()


def test_metadata_that_tells_something_else_is_refused(directory: Path) -> None:
    path = directory / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"shoal_height":"5"', b'"shoal_height":"6"'))
    assert refusal(directory).reason == "weights-header"


def test_chunks_are_exactly_those_of_the_manifest(directory: Path) -> None:
    first, second, _ = sorted((directory / "chunks").iterdir())
    stray = directory / "chunks" / ("0" * 64)
    stray.touch()
    assert refusal(directory).reason == "extra-chunk"
    stray.unlink()
    contents = first.read_bytes()
    first.write_bytes(second.read_bytes()[: len(contents)].ljust(len(contents)))
    assert refusal(directory).reason == "chunk"
    first.unlink()
    assert refusal(directory).reason == "missing-chunk"
    shutil.rmtree(directory / "chunks")
    assert refusal(directory).reason == "missing-chunk"


def test_another_anchor_is_refused_however_well_it_fits_its_own_manifest(directory: Path) -> None:
    values = MESH.anchor.values.clone()
    values[0] += 1
    other = Manifest.of(Anchor(SCHEMA, values))
    (directory / "manifest.bin").write_bytes(other.to_bytes())
    assert refusal(directory).reason == "manifest-root"
    pretended = replace(other, root=MESH.record.anchor_root)
    (directory / "manifest.bin").write_bytes(pretended.to_bytes())
    assert refusal(directory).reason == "manifest-addresses"


def test_the_config_must_be_the_genesis_own_to_the_byte(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(path.read_text().replace("{", '{"hidden_size": 1,', 1))
    assert refusal(directory).reason == "config"


BLOBS = [delta.to_bytes() for delta in MESH.deltas]
NOT_THE_SENDER = replace(MESH.deltas[0], signature=MESH.deltas[1].signature).to_bytes()
OTHER_FRAME = BLOBS[0][:-1] + b"?"


@pytest.mark.parametrize(
    ("deltas", "reason"),
    [
        ([BLOBS[1], BLOBS[0], *BLOBS[2:]], "delta-id"),
        (BLOBS[:-1], "deltas-count"),
        ([*BLOBS, BLOBS[0]], "deltas-count"),
        ([NOT_THE_SENDER, *BLOBS[1:]], "delta-signature"),
        ([OTHER_FRAME, *BLOBS[1:]], "delta-frame"),
        ([BLOBS[0] + b"?", *BLOBS[1:]], "deltas-size"),
        ([BLOBS[0][:100], *BLOBS[1:]], "deltas-size"),
    ],
)
def test_deltas_that_are_not_those_of_the_cut(
    directory: Path, deltas: list[bytes], reason: str
) -> None:
    (directory / "deltas.bin").write_bytes(as_list(deltas))
    assert refusal(directory).reason == reason


@pytest.mark.parametrize("name", ["adapter_config.json", "pytorch_model.bin", "x\x1b[2J"])
def test_files_that_nothing_certifies_are_named(directory: Path, name: str) -> None:
    (directory / name).touch()
    found = refusal(directory)
    assert found.reason == "extra-file"
    assert repr(name) in str(found)


def test_what_checkpoint_json_says_is_not_believed(directory: Path) -> None:
    (directory / "checkpoint.json").write_text('{"height": 99}')
    assert verify_checkpoint(directory, MESH.mesh_id).record.height == 5
    (directory / "checkpoint.json").unlink()
    assert verify_checkpoint(directory, MESH.mesh_id).record.height == 5


# --- what is no checkpoint at all -----------------------------------------------------------------


def test_what_cannot_be_checked_is_the_callers_to_put_right(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a directory"):
        verify_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        verify_checkpoint(tmp_path)
    (tmp_path / "anchor.bin").touch()
    (tmp_path / "certificate.bin").touch()
    with pytest.raises(UserError, match="older Shoal"):
        verify_checkpoint(tmp_path)


def test_a_genesis_that_is_malformed_is_refused_before_it_is_used(directory: Path) -> None:
    content = json.loads(MESH.genesis.document)
    for key, value in (
        ("founders", content["founders"][:1] * 2),
        ("founders", []),
        ("schema", [{**content["schema"][0], "shape": [2**62, 2**62]}]),
        ("schema", [{**content["schema"][0], "shape": [True]}]),
        ("schema", content["schema"][:1] * 2),
        ("tokenizer", {"../escape": "00"}),
        ("format", 3),
    ):
        (directory / "genesis.json").write_text(json.dumps({**content, key: value}))
        assert refusal(directory, trust=None).reason == "malformed-genesis"
    (directory / "genesis.json").write_bytes(b"[" * 100_000)
    assert refusal(directory, trust=None).reason == "malformed-genesis"


def test_the_operation_of_the_builder_is_the_one_that_consensus_writes() -> None:
    """The builder signs what production encodes: else all of the above proves nothing."""
    from shoal.consensus.records import Checkpoint, parse_operation

    parsed = parse_operation(MESH.operation)
    assert isinstance(parsed, Checkpoint)
    assert operation_bytes(parsed) == MESH.operation
    assert parsed.record == MESH.record


def test_the_command_loads_none_of_the_code_that_it_checks(written: dict[int, Path]) -> None:
    program = (
        "import sys; from shoal.node.cli import main; "
        f"code = main(['verify', {str(written[2])!r}, '--trust', {MESH.mesh_id.hex()!r}]); "
        "theirs = ('shoal.consensus', 'shoal.gossip', 'shoal.compression', 'torch', 'grpc'); "
        "sys.exit(code or ' '.join(m for m in sys.modules if m.startswith(theirs)) or 0)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "height     5, round 4" in finished.stdout
    assert "which you named" in finished.stdout


def test_every_reason_is_explained_and_none_is_invented() -> None:
    root = Path(__file__).parents[2]
    code = "".join(path.read_text() for path in (root / "node").glob("verify*.py"))
    raised = set(re.findall(r'Refused\(\s*"([a-z-]+)"', code))
    kinds = re.findall(r'Refused\(\s*f"\{reason\}-([a-z]+)"', code)
    raised |= {f"{what}-{kind}" for what in ("epoch", "commit", "attestation") for kind in kinds}
    raised |= {f"malformed-{what}" for what in re.findall(r'Fields\(.*, "([a-z-]+)"\)', code)}
    rows = re.findall(
        r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \|", (root / "docs/verify.md").read_text(), re.M
    )
    explained = {word for row in rows for word in re.findall(r"`([a-z-]+)`", row)}
    assert explained == raised
