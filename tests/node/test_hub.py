"""hub:NAME, from the library's cache: tests ask no other host."""

from pathlib import Path

import huggingface_hub.constants as hub
import pytest

from shoal.node.errors import UnreachableError, UserError
from shoal.node.genesis import load_genesis
from shoal.node.hub import local_model
from shoal.node.ports import free_ports
from shoal.node.provision import make_mesh
from tests.training.base_models import write_base

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with org/tiny in it, as a download leaves it; the hub itself cannot be asked."""
    cache = tmp_path / "cache"
    repository = cache / "models--org--tiny"
    write_base(repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(cache))
    return cache


def test_a_mesh_begins_with_a_model_of_the_hub(tmp_path: Path, cache: Path) -> None:
    def mesh(name: str, model: Path) -> bytes:
        made = make_mesh(
            tmp_path / name,
            nodes=1,
            host="127.0.0.1",
            port=free_ports(1)[0],
            data="builtin",
            model=model,
            seed=0,
            preset=None,
            flags={},
        )
        return load_genesis(made.directories[0] / "genesis")[0].anchor_root

    directory = cache / "models--org--tiny" / "snapshots" / REVISION
    assert mesh("hub", Path("hub:org/tiny")) == mesh("copy", directory)


def test_a_revision_may_be_named_and_a_path_is_left_alone(tmp_path: Path) -> None:
    named = local_model(Path(f"hub:org/tiny@{REVISION}"))
    assert named is not None and named == local_model(Path("hub:org/tiny"))
    assert local_model(tmp_path / "nothing") == tmp_path / "nothing"
    assert local_model(None) is None


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [
        ("hub:org/none", UnreachableError, "did not deliver org/none"),
        ("hub:org/tiny@v9", UnreachableError, "did not deliver org/tiny"),
        ("hub:../../etc", UserError, "write hub:NAME"),
        ("hub:", UserError, "write hub:NAME"),
    ],
)
def test_what_cannot_be_had_is_one_line(name: str, error: type[UserError], why: str) -> None:
    with pytest.raises(error, match=why) as caught:
        local_model(Path(name))
    assert "\n" not in str(caught.value)


def test_pickles_are_not_opened(cache: Path) -> None:
    (weights,) = (cache / "models--org--tiny").glob("snapshots/*/*.safetensors")
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(UserError, match="no weights in safetensors"):
        local_model(Path("hub:org/tiny"))
