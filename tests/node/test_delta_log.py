"""A delta log from somebody else counts when it is exactly the cut's, signed by its senders."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.consensus.fields import blob, u32
from shoal.gossip.errors import GossipError
from shoal.node.bulk_wire import Description
from shoal.node.checkpoints import read_list
from shoal.node.delta_log import check_delta_log
from shoal.node.errors import PeerError
from shoal.node.pieces import PieceDirectory
from tests.node.test_audit import mesh

FRAME_BYTES_MAX = 1 << 20
__all__ = ["mesh"]


def log_of(directory: Path) -> tuple[Description, list[bytes]]:
    checkpoint = max((directory / "checkpoints").iterdir(), key=lambda path: int(path.name))
    anchor_bytes = sum(path.stat().st_size for path in (checkpoint / "chunks").iterdir())
    described = PieceDirectory(checkpoint, int(checkpoint.name), anchor_bytes).description()
    assert described is not None
    return described, list(read_list(checkpoint / "deltas.bin", FRAME_BYTES_MAX))


def check(described: Description, path: Path, deltas: list[bytes]) -> None:
    path.write_bytes(u32(len(deltas)) + b"".join(blob(delta) for delta in deltas))
    check_delta_log(described, path, frame_bytes_max=FRAME_BYTES_MAX)


def test_what_a_node_keeps_is_the_log_of_its_cut(mesh: list[Path], tmp_path: Path) -> None:
    described, deltas = log_of(mesh[0])
    assert len(deltas) >= 2
    check(described, tmp_path / "deltas.bin", deltas)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda deltas: deltas[:-1],
        lambda deltas: [*deltas, deltas[0]],
        lambda deltas: [deltas[1], deltas[0], *deltas[2:]],
        lambda deltas: [],
        lambda deltas: [deltas[0][:-1] + bytes([deltas[0][-1] ^ 1]), *deltas[1:]],
        lambda deltas: [deltas[0][:128] + bytes(64) + deltas[0][192:], *deltas[1:]],
    ],
    ids=["one missing", "one more", "swapped", "empty", "another frame", "unsigned"],
)
def test_anything_else_is_refused(
    mesh: list[Path], tmp_path: Path, spoil: Callable[[list[bytes]], list[bytes]]
) -> None:
    described, deltas = log_of(mesh[0])
    with pytest.raises((PeerError, GossipError)):
        check(described, tmp_path / "deltas.bin", spoil(deltas))
