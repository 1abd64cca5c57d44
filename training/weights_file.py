"""Weights on disk: safetensors with the model's tensor names, or raw float32 values.

A checkpoint directory holds the first; the second is the flat vector as it is. Either way the
weights that come back are one float32 vector [P] on the CPU.
"""

from pathlib import Path

import numpy as np
import torch

from shoal.training.errors import TrainingError
from shoal.training.model import FlatModel

SAFETENSORS = ".safetensors"
# 2048 tensors with the longest names are half of it. The library takes 100 MB, and then seconds for
# two hundred thousand empty tensors.
HEADER_BYTES_MAX = 1 << 20
TENSORS_MAX = 4096


def read_weights(path: Path, model: FlatModel) -> torch.Tensor:
    """Return the weights in `path` as float32 [P], in the order of `model.names_and_shapes()`.

    Raises TrainingError where the file cannot be read or belongs to another model.
    """
    try:
        if path.suffix == SAFETENSORS:
            return _read_safetensors(path, model)
        values = np.fromfile(path, dtype="<f4")
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror or error}") from None
    if len(values) != model.size:
        raise TrainingError(f"{path}: {len(values)} values, but the model has {model.size}")
    return torch.from_numpy(values.astype(np.float32, copy=False))


def write_weights(path: Path, model: FlatModel, weights: torch.Tensor) -> None:
    """Write `weights` [P] in the form that the ending of `path` names."""
    from safetensors.torch import save_file

    values = weights.detach().cpu().contiguous()
    if path.suffix != SAFETENSORS:
        values.numpy().astype("<f4", copy=False).tofile(path)
        return
    tensors, offset = {}, 0
    for name, shape in model.names_and_shapes():
        count = int(np.prod(shape, dtype=np.int64))
        tensors[name] = values[offset : offset + count].view(shape).clone()
        offset += count
    save_file(tensors, path, metadata={"format": "pt"})


def _read_safetensors(path: Path, model: FlatModel) -> torch.Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = file.read(min(header_bytes, HEADER_BYTES_MAX))
    if header_bytes > HEADER_BYTES_MAX:
        raise TrainingError(f"{path}: not a safetensors file: a header of {header_bytes} bytes")
    # Every tensor is an object of its own, whatever else it says.
    if header.count(b"{") > TENSORS_MAX:
        raise TrainingError(f"{path}: more than {TENSORS_MAX} tensors")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise TrainingError(f"{path}: not a safetensors file: {error}") from None
    parts = []
    for name, shape in model.names_and_shapes():
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise TrainingError(f"{path}: {name} is {found}; the model's has shape {shape}")
        parts.append(tensor.float().flatten())
    return torch.cat(parts)
