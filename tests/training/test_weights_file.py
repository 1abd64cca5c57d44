"""Weights that somebody gave us are measured before a library reads them."""

from pathlib import Path

import pytest
import torch

from shoal.training.errors import TrainingError
from shoal.training.model import FlatModel
from shoal.training.weights_file import HEADER_BYTES_MAX, read_weights, write_weights


@pytest.fixture
def model() -> FlatModel:
    return FlatModel(torch.nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ((HEADER_BYTES_MAX + 1).to_bytes(8, "little"), "a header of"),
        ((4097).to_bytes(8, "little") + b"{" * 4097, "more than 4096 tensors"),
        ((2).to_bytes(8, "little") + b"{", "not a safetensors file"),
        (b"", "not a safetensors file"),
    ],
)
def test_a_header_that_no_model_has_is_refused(
    data: bytes, why: str, model: FlatModel, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(TrainingError, match=why):
        read_weights(path, model)


def test_what_was_written_is_read(model: FlatModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path, model, model.flat)
    assert torch.equal(read_weights(path, model), model.flat)
