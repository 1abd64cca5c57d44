"""The documentation as a site: it builds without a warning, loads nothing from anywhere else, and
says of commands and services what the code has."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from shoal.node import cli
from tests.docs.blocks import PAGES, ROOT, Block, read_blocks, without_comment

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("docs")]

# What a browser fetches without being asked.
LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "link": "href",
    "object": "data",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", out],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return out


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get(LOADS.get(tag, ""))
        if target is not None and dict(attrs).get("rel") != "canonical":
            self.found.append(target)


def loaded_from_elsewhere(site: Path) -> Iterator[str]:
    for page in site.rglob("*.html"):
        reader = _Loads()
        reader.feed(page.read_text(encoding="utf-8"))
        yield from (
            f"{page.name}: {target}" for target in reader.found if re.match(r"(\w+:)?//", target)
        )
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        for target in re.findall(r"""(?:@import|url\()\s*['"]?((?:\w+:)?//[^'")]*)""", text):
            yield f"{sheet.name}: {target}"


def test_it_loads_nothing_from_another_host(site: Path) -> None:
    assert (site / "how.html").exists()
    assert not list(loaded_from_elsewhere(site))


def test_the_check_for_that_sees_it(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<link href="https://fonts.example/x" rel="stylesheet">')
    (tmp_path / "b.html").write_text('<a href="https://example.org">only a link</a>')
    (tmp_path / "c.css").write_text("a { background: url(//example.org/x.png) }")
    assert len(list(loaded_from_elsewhere(tmp_path))) == 2


def test_a_browser_asks_nobody_else(site: Path) -> None:
    """Scripts can load what no tag names, so a real one opens pages and is watched."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    asked: list[str] = []
    with playwright.sync_playwright() as browsers:
        try:
            chromium = browsers.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox"]
            )
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        page = chromium.new_page()
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index.html", "how.html", "reference/python.html"):
            page.goto((site / name).as_uri())
            page.wait_for_load_state("networkidle")
        drawn = page.goto((site / "how.html").as_uri()) and page.locator("math").count()
        chromium.close()
    assert drawn > 10, "mathematics are drawn by the browser itself"
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


def test_mathematics_leave_no_tex_behind(site: Path) -> None:
    page = (site / "how.html").read_text(encoding="utf-8")
    assert "<math" in page and "arithmatex" not in page and "\\frac" not in page


def test_every_command_and_every_call_has_its_entry(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for command in cli.app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        assert f"<code>shoal {name}</code>" in commands, name
    services = (site / "reference" / "grpc.html").read_text(encoding="utf-8")
    for proto in (ROOT / "proto").glob("*.proto"):
        for call in re.findall(r"^\s*rpc (\w+)", proto.read_text(), re.MULTILINE):
            assert f"<code>{call}</code>" in services, call


def code_of(block: Block) -> list[str]:
    """What must not differ between two languages: commands, and names in a list of folders."""
    if block.language == "sh":
        return [without_comment(line) for line in block.text.splitlines()]
    lines = block.text.splitlines()
    if all(re.match(r"[\w/]+/ ", line) for line in lines):
        return [line.split()[0] for line in lines]
    return lines


def test_the_chinese_readme_has_the_same_code() -> None:
    english, chinese = map(read_blocks, ("README.md", "README.zh.md"))
    assert [(b.language, code_of(b)) for b in chinese] == [
        (b.language, code_of(b)) for b in english
    ]
    assert "(README.zh.md)" in (ROOT / PAGES[0]).read_text(encoding="utf-8")
    assert "(README.md)" in (ROOT / "README.zh.md").read_text(encoding="utf-8")
