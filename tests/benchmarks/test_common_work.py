"""The common work: the same text every time, each document in one place."""

import json
from pathlib import Path

import pytest

from benchmarks.common_work import HELD_OUT_FILE, WORKERS, Recipe, prepare, read_marks, shard_name
from shoal.training.builtin_text import named_documents
from shoal.training.tokenizer import SEPARATOR


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("work")
    prepare(directory, [10, 20])
    return directory


def shards(work: Path) -> list[list[str]]:
    files = [(work / shard_name(index)).read_text("utf-8") for index in range(WORKERS)]
    return [[json.loads(line)["text"] for line in text.splitlines()] for text in files]


def test_every_document_is_in_one_place(work: Path) -> None:
    held_out = (work / HELD_OUT_FILE).read_text("utf-8").split(SEPARATOR)
    placed = [*held_out, *(text for shard in shards(work) for text in shard)]
    assert sorted(placed) == sorted(text for _, text in named_documents())


def test_shards_are_equally_long_and_a_tenth_is_held_out(work: Path) -> None:
    lengths = [sum(map(len, shard)) for shard in shards(work)]
    assert max(lengths) < 1.1 * min(lengths)
    held_out = len((work / HELD_OUT_FILE).read_text("utf-8"))
    assert 0.08 < held_out / (held_out + sum(lengths)) < 0.11


def test_it_is_the_same_every_time(work: Path, tmp_path: Path) -> None:
    prepare(tmp_path, [10, 20])
    assert read_marks(tmp_path) == [10, 20]
    for path in work.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_a_recipe_goes_by_the_names_of_mesh_parameters() -> None:
    assert Recipe.parse("") == Recipe()
    assert Recipe.parse("muon_scale=4,schedule_tokens=4096") == Recipe(
        muon_scale=4.0, schedule_tokens=4096
    )
    with pytest.raises(TypeError, match="local_steps"):
        Recipe.parse("local_steps=10")
