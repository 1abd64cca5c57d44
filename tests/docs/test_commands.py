"""Every command of README.md and docs/ is typed, in order, by somebody who believes the pages.

One mesh of four real nodes, made by README's own commands; the other pages go on with it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from shoal.node.cli import app
from tests.docs.blocks import LANGUAGES, PAGES, ROOT, Block, read_blocks, without_comment
from tests.docs.reader import Reader

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("docs")]

# Not typed here: why, and who types it instead.
ELSEWHERE = {
    "make demo": "minutes; tests/node/test_demo_run.py runs the same demo, smaller",
    "make test": "this very suite",
    "make check": "CI, before this suite",
    "make sim SEED=7 SCHEDULES=1000 MODE=core": "CI, which simulates 5,000 schedules",
    "make mutants": "many minutes; tests/simulation plants some of the bugs",
    "make chaos SECONDS=600 SEED=1": "ten minutes; tests/chaos/test_chaos.py runs a shorter one",
    "make bench": "minutes; benchmarks/RESULTS.md is what it wrote",
    "make docs": "tests/docs/test_site.py builds the site in the same way",
    "make compose-test": "needs a container engine; it is itself the test",
    "docker compose up --build": "needs a container engine; make compose-test",
    "docker compose exec node0 shoal status": "needs a container engine; make compose-test",
    "grpcurl -plaintext 127.0.0.1:7600 shoal.v1.Inspect/Status": (
        "no program of Python's; tests/node/test_mesh.py asks by reflection"
    ),
}
# Pages of which nothing is typed here.
UNTYPED = {
    "docs/deploy.md": "needs root, containers or a cluster; tests/deploy reads what it starts, and "
    "make compose-test starts the containers",
}
PROGRAMS = re.compile(r"^\s*(\$ |shoal |make |docker |pip |python )", re.MULTILINE)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Somebody with a machine of their own."""
    somebody = Reader(tmp_path_factory.mktemp("reader"), ELSEWHERE)
    yield somebody
    somebody.close()


@pytest.mark.parametrize("page", [page for page in PAGES if page not in UNTYPED])
def test_a_page_does_what_it_says(reader: Reader, page: str) -> None:
    if page != PAGES[0] and not reader.typed:
        for block in read_blocks(PAGES[0]):
            reader.follow(block)
    for block in read_blocks(page):
        reader.follow(block)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_hides_no_command_from_the_reader(page: str) -> None:
    rest = (ROOT / page).read_text(encoding="utf-8")
    for block in read_blocks(page):
        assert block.language in LANGUAGES, f"{page}:{block.line}: ```{block.language}"
        rest = rest.replace(block.text, "")
        if block.language not in ("sh", "python"):
            assert not PROGRAMS.search(block.text), f"{page}:{block.line} is no sh"
    assert not re.search(r"^(\t|    )(\$ |shoal |make |docker |pip )", rest, re.MULTILINE), page


def test_what_nobody_types_here_stands_on_a_page() -> None:
    typed = {
        without_comment(command)
        for page in PAGES
        for block in read_blocks(page)
        for command in block.commands()
    }
    assert set(ELSEWHERE) <= typed


@pytest.mark.parametrize("page", UNTYPED)
def test_what_an_untyped_page_says_of_shoal_exists(page: str) -> None:
    text = "".join(block.text for block in read_blocks(page)).replace("\\\n", " ")
    root: Any = get_command(app)
    said = re.findall(r"\bshoal ([a-z]+)((?: +[^\s|;&#]+)*)", text)
    assert len(said) >= 5
    for name, rest in said:
        parameters = root.commands[name].params
        known = {option for each in parameters for option in (*each.opts, *each.secondary_opts)}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"shoal {name}{rest}"


@pytest.mark.parametrize(
    "blocks",
    [
        [("sh", "shoal frobnicate")],
        [("sh", "shoal verify nowhere")],
        [("sh", "shoal version"), ("text", "shoal 0.0.0")],
        [("python", "import shoal.nothing")],
        [("toml", "[node]\nlissten = 1")],
    ],
)
def test_a_page_that_is_wrong_is_found_out(tmp_path: Path, blocks: list[tuple[str, str]]) -> None:
    reader = Reader(tmp_path, ELSEWHERE)
    *before, wrong = (Block("made-up.md", 1, language, "", text) for language, text in blocks)
    for block in before:
        reader.follow(block)
    with pytest.raises(AssertionError):
        reader.follow(wrong)
