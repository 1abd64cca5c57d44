"""Where the arithmetic runs: this machine's CPU, or one of its NVIDIA GPUs."""

import re

import torch

from shoal.training.errors import TrainingError


def pick_device(name: str) -> torch.device:
    """Return the torch device called "auto", "cpu", "cuda" or "cuda:N".

    "auto" is the first GPU where there is one, else the CPU. Raises TrainingError for any other
    name and for a GPU that is asked for but not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise TrainingError(f'there is no device "{name}"; use auto, cpu, cuda or cuda:N')
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        _require_cuda(name, device.index or 0)
    return device


def device_of_rank(device: str, rank: int) -> str:
    """Return the device of a rank: the GPUs from `device` on, one each, or the CPU for all."""
    if device == "auto" and not torch.cuda.is_available():
        return "cpu"
    if device == "cpu":
        return device
    return f"cuda:{int(device.partition(':')[2] or 0) + rank}"


def _require_cuda(name: str, index: int) -> None:
    if not torch.cuda.is_available():
        why = (
            "this torch was built without CUDA"
            if torch.version.cuda is None
            else "torch finds no NVIDIA GPU"
        )
        raise TrainingError(f"device {name} was asked for, but {why}; use auto or cpu")
    count = torch.cuda.device_count()
    if index >= count:
        raise TrainingError(
            f"device {name} was asked for, but there are {count} GPUs; the last is cuda:{count - 1}"
        )
