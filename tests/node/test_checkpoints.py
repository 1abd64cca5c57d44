"""A checkpoint directory gives back what was written, and says in one line what is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shoal.gossip.anchor import Anchor
from shoal.gossip.errors import GossipError
from shoal.gossip.schema import ModelSchema, TensorSchema
from shoal.gossip.tree import CHUNK_BYTES
from shoal.node.checkpoints import CheckpointFiles, CheckpointStore, read_list
from shoal.node.errors import DamagedError
from shoal.node.genesis import anchor_to_bytes

# Three chunks, of which two are equal and so lie in one file.
SCHEMA = ModelSchema((TensorSchema("weight", (2 * CHUNK_BYTES // 4 + 5,), 28),))
DELTAS = [b"the first delta", b"", b"the third"]


def files_at(height: int) -> tuple[CheckpointFiles, Anchor]:
    values = torch.zeros(SCHEMA.layout.total, dtype=torch.int32)
    values[-1] = height
    anchor = Anchor(SCHEMA, values)
    return CheckpointFiles(
        height=height,
        operation=b"operation",
        certificate=b"certificate",
        settled=b"settled",
        anchor=anchor_to_bytes(anchor),
        links=(b"link 1", b"link 2"),
    ), anchor


def write(
    store: CheckpointStore, height: int, *, deltas: list[bytes] | None = DELTAS
) -> CheckpointFiles:
    files, anchor = files_at(height)
    store.write(
        files,
        anchor,
        genesis=b"{}",
        deltas=deltas,
        model_config={},
        tokenizer={"tokenizer.json": b"{}"},
        facts={},
    )
    return files


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    files = write(store, 7)
    assert store.read(7) == files
    assert len(list((store.path(7) / "chunks").iterdir())) == 2
    assert list(read_list(store.path(7) / "deltas.bin", 100)) == DELTAS


def test_deltas_that_are_not_all_here_are_not_written(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    write(store, 1, deltas=None)
    assert not (store.path(1) / "deltas.bin").exists()


def _remove_a_chunk(directory: Path) -> None:
    next((directory / "chunks").iterdir()).unlink()


def _lengthen_a_chunk(directory: Path) -> None:
    with next((directory / "chunks").iterdir()).open("ab") as file:
        file.write(b"x")


def _promise_a_terabyte(directory: Path) -> None:
    (directory / "epochs.bin").write_bytes(b"\x00\x00\x00\x01\xff\xff\xff\xff")


def _swell_the_settled_state(directory: Path) -> None:
    # A file with a hole: reading it would take the memory, storing it took none.
    with (directory / "settled.bin").open("wb") as file:
        file.truncate(1 << 40)


def _spoil_the_manifest(directory: Path) -> None:
    path = directory / "manifest.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _make_it_old(directory: Path) -> None:
    (directory / "anchor.bin").touch()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_remove_a_chunk, "cannot be read"),
        (_lengthen_a_chunk, "bad-chunk"),
        (_promise_a_terabyte, "bad-list"),
        (_swell_the_settled_state, "too-large"),
        (_spoil_the_manifest, "bad-manifest"),
        (_make_it_old, "format of an older Shoal"),
    ],
)
def test_a_spoilt_directory_is_one_line_that_says_what_to_do(
    tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    write(store, 1)
    spoil(store.path(1))
    with pytest.raises(DamagedError) as caught:
        store.read(1)
    line = str(caught.value)
    assert words in line and "move that directory away" in line and "\n" not in line


@pytest.mark.parametrize(
    "data", [b"", b"\x00\x00\x00\x01", b"\x00\x00\x00\x01\x00\x00\x00\x02a", b"\x00\x00\x00\x00a"]
)
def test_a_list_that_does_not_end_where_it_should_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "list.bin"
    path.write_bytes(data)
    with pytest.raises(GossipError, match="bad-list"):
        list(read_list(path, 100))
