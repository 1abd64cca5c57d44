"""Names of devices."""

import pytest
import torch

from shoal.training.device import pick_device
from shoal.training.errors import TrainingError


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_not_quietly_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=r"device cuda was asked for, but .*; use auto or cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(TrainingError, match=r"there are 2 GPUs; the last is cuda:1"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cpu:0", "mps", "CUDA"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(TrainingError, match="use auto, cpu, cuda or cuda:N"):
        pick_device(name)
