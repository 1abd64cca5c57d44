"""What a person's terminal gets, what a pipe gets, and that each command helps with both."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from shoal.node import cli
from shoal.node.errors import OK, UNREACHABLE
from shoal.node.progress import heard, shown, tell
from shoal.node.verify import verify_checkpoint
from tests.node.certified import MESH
from tests.node.fake_node import example_reply, fake_node

# Commands without --json, and what a program uses instead.
WITHOUT_JSON = {
    "run": "it becomes the node: its log is JSON, and `shoal status` answers",
    "join": "it becomes the node, as run does; its exit code says whether it did",
    "demo": "what it has to say is in report.json",
    "dashboard": "it serves a page until it is interrupted",
    "serve": "it serves an API, in JSON, until it is interrupted",
}
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|38|4[0-7]|48|9[0-7])[;m]")
TO_THE_OTHER_SCREEN, BACK = "\x1b[?1049h", "\x1b[?1049l"


def commands(app: typer.Typer, *before: str) -> Iterator[tuple[str, ...]]:
    """The words of every command that there is, also those of groups."""
    for each in app.registered_commands:
        assert each.callback is not None
        yield (*before, each.name or each.callback.__name__)
    for group in app.registered_groups:
        assert group.typer_instance is not None and group.name
        yield from commands(group.typer_instance, *before, group.name)


ALL = list(commands(cli.app))


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_an_example_and_json_or_a_reason(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--help"]) == OK
    text = capsys.readouterr().out
    name = " ".join(words)
    assert re.search(rf"Example: shoal {name}\b", text)
    assert ("  --json " in text) != (name in WITHOUT_JSON)


def test_the_reasons_are_about_commands_that_there_are() -> None:
    assert WITHOUT_JSON.keys() <= {" ".join(words) for words in ALL}


def on_a_terminal(*words: str, **environment: str) -> tuple[int, str]:
    """Run shoal with a terminal of 100 columns and 40 lines; its exit code and all it wrote."""
    ours, theirs = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    place = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen(
        [sys.executable, "-m", "shoal.node", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**clean, **place, **environment},
    ) as process:
        os.close(theirs)
        written = b""
        # Reading the end of a terminal that everybody has closed is an error on Linux.
        try:
            while piece := os.read(ours, 65536):
                written += piece
        except OSError:
            pass
        os.close(ours)
        return process.wait(timeout=60), written.decode()


def test_a_watch_fills_the_screen_and_gives_it_back() -> None:
    with fake_node(example_reply()) as address:
        code, text = on_a_terminal("status", address, "--watch")
    assert code == UNREACHABLE, "the node stopped"
    assert text.index(TO_THE_OTHER_SCREEN) < text.index("round 17 of 32") < text.index(BACK)
    assert COLOUR.search(text)
    # The error is left on the screen that stays.
    assert text.index(BACK) < text.index("error: ")


def test_what_a_small_screen_has_no_room_for_is_said() -> None:
    with fake_node(example_reply()) as address:
        _, small = on_a_terminal("status", address, "--watch", LINES="20")
        _, large = on_a_terminal("status", address, "--watch", LINES="60")
    assert "more lines: make the window taller" in small and "rejected from peers" not in small
    assert "more lines" not in large and "rejected from peers" in large


def test_no_color_means_no_colour() -> None:
    with fake_node(example_reply()) as address:
        code, text = on_a_terminal("status", address, NO_COLOR="1")
    assert code == OK and "round 17 of 32" in text
    assert not COLOUR.search(text)


def test_a_pipe_gets_no_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_node(example_reply()) as address:
        asked = ["status", "checkpoints", "peers", "health"]
        codes = [cli.main([command, address]) for command in asked]
        codes += [cli.main(["explain", "17", address]), cli.main(["status", "nobody"])]
    captured = capsys.readouterr()
    assert codes == [OK] * 5 + [2]
    assert "round 17 of 32" in captured.out and "waited for" in captured.out
    assert "\x1b" not in captured.out + captured.err


def completed(line: str) -> list[str]:
    """What bash offers after this line, with the script that shoal prints for it."""
    words = line.split(" ")
    script = (
        'eval "$(_SHOAL_COMPLETE=source_bash shoal)"; '
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
        '_shoal_completion shoal; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_bash_completes_commands_and_options() -> None:
    assert completed("shoal check") == ["checkpoints"]
    assert set(completed("shoal identity export --")) >= {"--passphrase-file", "--json"}


def test_what_takes_long_says_how_far_it_is(tmp_path: Path) -> None:
    told: list[Any] = []
    verify_checkpoint(
        MESH.write(tmp_path / "5"), MESH.mesh_id, tell=lambda *what: told.append(what)
    )
    assert told[0] == ("checking signatures", 0, 0)
    assert told[-1] == ("checking weights, chunks", 2, 3)
    with heard(lambda *what: told.append(what)):
        tell("fetching", 3, 4)
    tell("to nobody")
    assert told[-1] == ("fetching", 3, 4)


def test_progress_is_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with shown("loading"):
        tell("fetching", 3, 4)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shown("loading", still=True):
        tell("fetching", 3, 4)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "loading" in captured.err and "3 of 4" in captured.err
