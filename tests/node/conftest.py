"""Certified checkpoint directories, written once and copied by whoever spoils them."""

import shutil
from pathlib import Path

import pytest

from tests.node.certified import MESHES


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A checkpoint directory of epoch 0 and one of epoch 2, to read."""
    root = tmp_path_factory.mktemp("certified")
    return {epoch: mesh.write(root / str(epoch)) for epoch, mesh in MESHES.items()}


@pytest.fixture
def directory(written: dict[int, Path], tmp_path: Path) -> Path:
    """A copy of the checkpoint of epoch 2, to spoil."""
    return Path(shutil.copytree(written[2], tmp_path / "5"))
