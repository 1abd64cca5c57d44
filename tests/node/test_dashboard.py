"""`shoal dashboard` without a browser: who may read it, what it serves, how it ends."""

import http.client
import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.node import cli
from shoal.node.config import load_settings
from shoal.node.errors import BAD_INPUT, OK
from shoal.node.mesh_watch import ENTRIES_MAX, Journal, Target, find_target
from tests.integration.processes import command
from tests.node.fake_node import example_reply, fake_node
from tests.node.mesh import found_mesh

pytestmark = pytest.mark.timeout(120)


class Page:
    """A running `shoal dashboard`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        assert process.stdout is not None
        words = process.stdout.readline().split()
        self.address = words[1].removeprefix("http://").rstrip("/")

    @contextmanager
    def get(self, path: str, host: str = "") -> Iterator[http.client.HTTPResponse]:
        with closing(http.client.HTTPConnection(self.address, timeout=60)) as connection:
            connection.request("GET", path, headers={"Host": host} if host else {})
            with connection.getresponse() as answer:
                yield answer

    def first(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event that is wanted."""
        with self.get("/events") as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    found: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                    if wanted(found):
                        return found
        raise AssertionError("the stream ended")


@contextmanager
def dashboard(target: str) -> Iterator[Page]:
    words = command("dashboard", target, "--listen", "127.0.0.1:0")
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield Page(process)
        finally:
            process.kill()


def test_the_page_tells_what_the_node_tells_and_ends_in_order() -> None:
    reply = example_reply()
    reply.peers[1].liveness, reply.peers[1].why = "dead", "its link ended"
    with fake_node(reply, lasting=True) as address, dashboard(address) as page:
        found = page.first(lambda each: "members" in each["mesh"])
        assert {m["name"]: m["shown"] for m in found["mesh"]["members"]} == {
            "node0": "alive",
            "22222222": "dead",
        }
        losses = [entry["loss"] for entry in found["entries"] if "loss" in entry]
        assert losses == [["ab" * 32, 17, 2.513], ["shared", 8, 2.6], ["shared", 16, 2.6]]
        page.process.send_signal(signal.SIGINT)
        _, complaints = page.process.communicate(timeout=30)
    assert (page.process.returncode, complaints) == (OK, "")


def test_the_browser_is_told_to_run_nothing_but_the_files_of_this_page() -> None:
    with fake_node(example_reply()) as address, dashboard(address) as page:
        for path in ("/", "/main.js", "/nothing"):
            with page.get(path) as answer:
                policy = str(answer.getheader("Content-Security-Policy"))
            assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
            assert "unsafe" not in policy
            assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy
        with page.get("/%2e%2e/dashboard.py") as answer:
            assert answer.status == 404
        # What a page of another site gets that points its own name at this machine.
        with page.get("/events", host="evil.example") as answer:
            assert answer.status == 400


def test_the_page_stands_on_its_own_files_and_never_makes_markup_of_text() -> None:
    files = [*Path(cli.__file__).with_name("page").iterdir()]
    assert {path.suffix for path in files} == {".html", ".css", ".js", ".svg"}
    for path in files:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        for banned in ("http", "innerHTML", "outerHTML", "insertAdjacent", "document.write"):
            assert banned not in text, f"{banned} in {path.name}"


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("0.0.0.0:7800", "anybody could look"),
        ("7800", "not host:port"),
    ],
)
def test_only_this_machine_may_look(
    listen: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["dashboard", "127.0.0.1:1", "--listen", listen]) == BAD_INPUT
    assert expected in capsys.readouterr().err


def test_a_directory_opens_the_mesh_and_an_address_one_node(tmp_path: Path) -> None:
    first, second = found_mesh(tmp_path / "mesh", nodes=2)
    home, other = find_target(str(first)), find_target(str(second))
    assert (home.address, home.member) == (load_settings(first).node.inspect_listen, first)
    assert len({home.node_id, other.node_id} - {""}) == 2
    assert find_target(str(tmp_path / "mesh")) == home, "the first of those inside"
    assert find_target("127.0.0.1:7600") == Target("127.0.0.1:7600")
    (first / "identity.key").unlink()
    assert find_target(str(first)) == Target(home.address), "it can ask as nobody"


def test_a_reader_of_the_journal_is_told_everything_once_as_far_as_it_is_kept() -> None:
    journal = Journal()
    for number in range(3):
        journal.add(text=str(number))
    assert [entry["text"] for entry in journal.since(1)] == ["1", "2"]
    assert journal.since(3) == []
    for _ in range(ENTRIES_MAX):
        journal.add(text="new")
    kept = journal.since(0)
    assert len(kept) == ENTRIES_MAX and kept[-1]["number"] == ENTRIES_MAX + 3


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(scheme: int) -> None:
    style = Path(cli.__file__).with_name("page").joinpath("style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", blocks[scheme]))
    for words in ("ink", "muted", "accent", "good", "warn", "bad"):
        for behind in ("card", "page"):
            found = contrast(colours[words], colours[behind])
            assert found >= 4.5, f"{words} on {behind}: {found:.2f}, WCAG AA asks for 4.5"
    for line in (f"s{index}" for index in range(6)):
        assert contrast(colours[line], colours["card"]) >= 3.0, "AA for what is drawn"


def contrast(one: str, other: str) -> float:
    """The ratio of relative luminances, 1 to 21 (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        red, green, blue = (
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
