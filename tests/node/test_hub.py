"""hub:NAME, from the library's cache: tests ask no other host."""

import json
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import huggingface_hub.constants as hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from shoal.node.config import load_settings
from shoal.node.daemon import worker_configuration
from shoal.node.doctor_place import judge_text, text_facts
from shoal.node.errors import UnreachableError, UserError
from shoal.node.genesis import load_genesis
from shoal.node.hub import local_data, local_model
from shoal.node.ports import free_ports
from shoal.node.provision import make_mesh
from shoal.training.documents import FileDocuments
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
    # And of a data set, with more files than anybody asks for.
    texts = cache / "datasets--org--texts"
    for name in (
        "data/train-0.jsonl",
        "data/train-1.jsonl",
        "data/test.jsonl",
        "README.md",
        "x.py",
    ):
        path = texts / "snapshots" / REVISION / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"text": f"{name} {row} " * 9, "body": "another"} for row in range(40)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (texts / "refs").mkdir()
    (texts / "refs" / "main").write_text(REVISION)
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


def documents(data: str) -> list[str]:
    return list(FileDocuments.of(local_data(data)))


def test_data_of_the_hub_is_its_rows_and_neither_its_page_nor_its_scripts(tmp_path: Path) -> None:
    assert len(documents("hub:org/texts")) == 120
    train = documents(f"hub:org/texts@{REVISION}#data/train-*.jsonl")
    assert len(train) == 80 and train[0].startswith("data/train-0.jsonl 0 ")
    assert set(documents("hub:org/texts#data/test.jsonl,none.txt?text=body")) == {"another"}
    assert local_data("builtin:0/4") == "builtin:0/4"
    assert local_data(str(tmp_path)) == str(tmp_path)


def test_a_node_is_told_the_name_and_trains_on_what_lies_here(tmp_path: Path, cache: Path) -> None:
    data = "hub:org/texts#data/train-{index}.jsonl"
    made = make_mesh(
        tmp_path / "mesh",
        nodes=2,
        host="127.0.0.1",
        port=free_ports(1)[0],
        data=data,
        model=None,
        seed=0,
        preset=None,
        flags={},
    )
    settings = load_settings(made.directories[1])
    assert settings.train.data == data.format(index=1)
    genesis, _, _ = load_genesis(made.directories[1] / "genesis")
    told = worker_configuration(settings, genesis)["data"]
    assert told.startswith(str(cache)) and told.endswith("?files=data/train-1.jsonl")
    found = judge_text(text_facts(settings.train.data), sequence=128, enabled=True)
    assert "KiB" in found.what


def test_the_doctor_says_what_has_not_been_fetched() -> None:
    found = judge_text(text_facts("hub:org/none"), sequence=128, enabled=True)
    assert "has not been fetched" in found.what


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [
        ("hub:org/none", UnreachableError, "did not deliver org/none"),
        ("hub:../../etc", UserError, "write hub:NAME"),
        ("hub:org/texts#load.py", UserError, "files are read that end with one of .txt, .jsonl"),
        ("hub:org/texts#*.parquet", UserError, "has no files like [*].parquet"),
    ],
)
def test_data_that_cannot_be_had_is_one_line(name: str, error: type[UserError], why: str) -> None:
    with pytest.raises(error, match=why) as caught:
        local_data(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("refusal", "why"),
    [
        (GatedRepoError, "only for those whom its owners let in"),
        (RepositoryNotFoundError, "the hub has no dataset org/texts at v2"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    refusal: type[RepositoryNotFoundError], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = Mock(side_effect=refusal("no", response=Mock()))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=why):
        local_data("hub:org/texts@v2")
