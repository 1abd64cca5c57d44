"""The test vectors of compression/README.md hold in both directions."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.compression.codec import SparseDelta, decode, encode
from shoal.compression.frame import FrameError, parse_frame, tensor_norms
from shoal.compression.layout import Layout

README = Path(__file__).parents[2] / "compression" / "README.md"
BLOCKS = re.findall(r"```json\n(.*?)```", README.read_text(), re.DOTALL)
ACCEPTED, REFUSED = ([json.loads(line) for line in block.splitlines()] for block in BLOCKS)


def delta_of(vector: dict[str, Any]) -> SparseDelta:
    layout = Layout(tuple(vector["sizes"]))
    low, high = np.array(vector["magnitudes"], dtype=np.float32).T
    codes = np.array(vector["codes"], dtype=np.uint8)
    tensor_ids = np.repeat(
        np.arange(len(layout.sizes)), layout.kept_per_tensor(vector["kept_per_chunk"])
    )
    return SparseDelta(
        layout=layout,
        kept_per_chunk=vector["kept_per_chunk"],
        indices=np.array(vector["indices"], dtype=np.int64),
        codes=codes,
        centroids=np.stack((-high, -low, low, high), axis=1),
        counts=np.bincount(4 * tensor_ids + codes, minlength=4 * len(layout.sizes)).reshape(-1, 4),
    )


@pytest.mark.parametrize("vector", ACCEPTED, ids=lambda vector: vector["name"])
def test_accepted_vectors(vector: dict[str, Any]) -> None:
    delta = delta_of(vector)
    data = bytes.fromhex(vector["frame"])
    assert encode(delta) == data
    received = decode(data, delta.layout)
    for name in ("indices", "codes", "centroids", "counts"):
        assert np.array_equal(getattr(received, name), getattr(delta, name)), name
    assert tensor_norms(parse_frame(data, delta.layout)) == vector["norms"]


@pytest.mark.parametrize("vector", REFUSED, ids=lambda vector: vector["name"])
def test_refused_vectors(vector: dict[str, Any]) -> None:
    with pytest.raises(FrameError) as refusal:
        decode(bytes.fromhex(vector["frame"]), Layout(tuple(vector["sizes"])))
    assert refusal.value.reason == vector["name"]


def test_every_reason_in_the_code_is_explained_and_shown() -> None:
    code = "".join(path.read_text() for path in README.parent.glob("*.py"))
    reasons = set(re.findall(r'FrameError\(\s*"([a-z-]+)"', code)) | {"truncated", "trailing-data"}
    table = set(re.findall(r"^\| `([a-z-]+)` \|", README.read_text(), re.MULTILINE))
    assert reasons == table
    assert {vector["name"] for vector in REFUSED} == table
