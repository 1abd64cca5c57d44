"""`shoal doctor` as its operator meets it: one story a fault, on real nodes over loopback."""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from shoal.node import cli, doctor, doctor_disk
from shoal.node.config import load_settings
from shoal.node.doctor import examine
from shoal.node.doctor_findings import (
    CHECKS,
    SCHEMA,
    Finding,
    Report,
    Verdict,
    fine,
    not_checked,
    problem,
    warning,
)
from shoal.node.doctor_view import print_report
from shoal.node.errors import OK, PROBLEMS, WARNINGS
from tests.node.mesh import any_address, found_mesh, running, until, until_rebuilt
from tests.node.played import played_plainly

PROBLEM, WARNING, FINE, NOT_CHECKED = (
    Verdict.PROBLEM,
    Verdict.WARNING,
    Verdict.FINE,
    Verdict.NOT_CHECKED,
)
DOCS = Path(__file__).parents[2] / "docs" / "doctor.md"


def found(report: Report, check: str) -> Finding:
    (one,) = [each for each in report.findings if each.check == check]
    return one


def verdicts(report: Report, *checks: str) -> list[Verdict]:
    return [found(report, check).verdict for check in checks]


def tree(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below, as it is: modes, times and contents."""
    return {
        str(path): (
            path.stat().st_mode,
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in (directory, *sorted(directory.rglob("*")))
    }


@played_plainly
async def test_before_the_first_start_all_is_well_but_for_the_copy_of_the_key(
    tmp_path: Path,
) -> None:
    (home,) = found_mesh(tmp_path / "mesh", nodes=1)
    before = tree(home)
    report = await examine(home)
    assert tree(home) == before, "nothing is changed"
    assert sorted(each.check for each in report.findings) == sorted(CHECKS), "each exactly once"
    assert not report.of(PROBLEM)
    # How fast this disk is, and how busy this machine, is not for a test to say.
    left = {each.check for each in report.of(WARNING)} - {"fsync", "torch", "memory"}
    assert left == {"key-backup"}
    assert verdicts(report, "listen", "join", "inspect", "data") == [FINE] * 4
    assert report.running is False and report.exit_code(strict=False) == OK


@played_plainly
async def test_a_mesh_that_runs_is_seen_from_inside_and_from_outside(tmp_path: Path) -> None:
    homes = found_mesh(tmp_path / "mesh", nodes=2)
    async with running(homes, rounds=0) as nodes:
        await until_rebuilt(nodes, 1)
        report = await examine(homes[0])
    assert report.running is True
    assert not report.of(PROBLEM)
    checks = ("listen", "join", "inspect", "peers", "clock", "protocol", "advertised", "training")
    assert verdicts(report, *checks) == [FINE] * len(checks)
    assert "1 of 1 members that looked reach" in found(report, "advertised").what
    assert "this node" in found(report, "join").what
    # Two validators can both be reached and neither may fail: a quorum, and nothing to spare.
    assert "2 of 2 validators" in found(report, "quorum").what
    assert re.search(r"^\d+ s since the last commit", found(report, "commits").what)


@played_plainly
async def test_an_address_that_leads_nowhere_is_found_out_by_the_other_member(
    tmp_path: Path,
) -> None:
    homes = found_mesh(tmp_path / "mesh", nodes=2)
    listed = load_settings(homes[0]).node.listen
    _move(homes[0], listed)
    async with running(homes, rounds=0) as nodes:
        await until(lambda: bool(nodes[0].node.links.connected), nodes)
        report = await examine(homes[0])
        advertised = found(report, "advertised")
        assert advertised.verdict is PROBLEM
        assert f"0 of 1 members that looked reach {listed}" in advertised.what
        assert "nothing listens there" in advertised.what
        assert verdicts(report, "listen", "peers") == [FINE, FINE]
        assert report.exit_code(strict=False) == PROBLEMS


@played_plainly
async def test_an_address_that_the_mesh_was_not_told_yet(tmp_path: Path) -> None:
    homes = found_mesh(tmp_path / "mesh", nodes=2)
    listed, moved = load_settings(homes[0]).node.listen, any_address()
    async with running(homes, rounds=0) as nodes:
        await until(lambda: bool(nodes[0].node.links.connected), nodes)
        _advertise(homes[0], moved)
        advertised = found(await examine(homes[0]), "advertised")
    assert advertised.verdict is PROBLEM
    assert f"the mesh knows this node as {listed}, and its settings say {moved}" in advertised.what
    assert advertised.fix.startswith("restart it")


def _advertise(home: Path, address: str) -> None:
    config = home / "node.toml"
    text = re.sub(r"(?m)^#? ?advertise = .*$", f'advertise = "{address}"', config.read_text())
    config.write_text(text)


def _move(home: Path, listed: str) -> None:
    """Let a node listen elsewhere than its mesh believes and than it says."""
    config = home / "node.toml"
    moved = f'listen = "{any_address()}"'
    config.write_text(config.read_text().replace(f'listen = "{listed}"', moved))
    _advertise(home, listed)


@played_plainly
async def test_a_validator_that_is_gone_takes_the_quorum_with_it(tmp_path: Path) -> None:
    homes = found_mesh(tmp_path / "mesh", nodes=2)
    async with running(homes[:1], rounds=0) as nodes:
        await until(lambda: bool(nodes[0].node.links.peers), nodes)
        report = await examine(homes[0])
    assert verdicts(report, "quorum", "peers") == [PROBLEM, PROBLEM]
    assert "1 of 2 validators can be reached" in found(report, "quorum").what
    nobody = found(report, "advertised")
    assert nobody.verdict is NOT_CHECKED and "no member answered" in nobody.what


@played_plainly
async def test_a_clock_that_is_wrong_here(tmp_path: Path) -> None:
    homes = found_mesh(tmp_path / "mesh", nodes=2)
    async with running(homes, rounds=0) as nodes:
        await until(lambda: bool(nodes[0].node.links.connected), nodes)
        report = await examine(homes[0], clock=lambda: time.time() - 30)
        assert found(report, "clock").verdict is WARNING
        assert "30.0 s behind" in found(report, "clock").what


@contextmanager
def silent(count: int) -> Iterator[list[str]]:
    """Addresses where connections come about, and nobody ever says a word."""
    with ExitStack() as held:
        servers = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        yield [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]


@played_plainly
async def test_members_that_never_answer_do_not_hold_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight of them, a name that cannot be looked up, and a torch that never loads."""
    (home,) = found_mesh(tmp_path / "mesh", nodes=1)
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *filter(None, sys.path)]))
    with silent(7) as addresses:
        members = [f"{i:02x}" * 32 for i in range(1, 9)]
        peers = [
            f"{m}@{a}" for m, a in zip(members, [*addresses, "nowhere.invalid:1"], strict=True)
        ]
        text = (home / "node.toml").read_text()
        (home / "node.toml").write_text(
            re.sub(r"(?m)^#? ?peers = .*$", f"peers = {json.dumps(peers)}", text)
        )
        began = time.monotonic()
        report = await examine(home)
        assert time.monotonic() - began < 13, "the whole command has 15 s"
    assert "0 of 8 members asked answer" in found(report, "peers").what
    assert found(report, "torch").verdict is WARNING
    assert verdicts(report, "key", "listen") == [FINE, FINE], "the others are told all the same"


@played_plainly
async def test_a_disk_that_hangs_is_a_finding_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home,) = found_mesh(tmp_path / "mesh", nodes=1)
    monkeypatch.setattr(doctor_disk, "disk_facts", lambda *_, **__: time.sleep(30))
    monkeypatch.setattr(doctor, "CHECKS_S_MAX", 3.0)
    report = await examine(home)
    hangs = found(report, "directory")
    assert hangs.verdict is PROBLEM and "the disk gave no answer in 3 s" in hangs.what
    assert found(report, "fsync").verdict is NOT_CHECKED
    assert report.seconds < 8


@played_plainly
async def test_settings_that_do_not_load_leave_the_rest_to_be_looked_at(tmp_path: Path) -> None:
    (home,) = found_mesh(tmp_path / "mesh", nodes=1)
    (home / "identity.key").chmod(0o644)
    with (home / "node.toml").open("a") as file:
        file.write("\n[trian]\nbatch = 4\n")
    report = await examine(home)
    configuration = found(report, "configuration")
    assert configuration.verdict is PROBLEM
    assert "did you mean train" in configuration.fix
    assert verdicts(report, "key", "genesis", "fsync")[:2] == [PROBLEM, FINE]
    of_settings = ("node", "listen", "inspect", "data", "device", "peers", "clock")
    assert verdicts(report, *of_settings) == [NOT_CHECKED] * 7, "not those of the defaults"
    assert report.running is None and report.node_id == ""


@played_plainly
async def test_without_a_directory_the_machine_is_looked_at(tmp_path: Path) -> None:
    report = await examine(None)
    assert verdicts(report, "python", "sqlite", "libraries") == [FINE] * 3
    assert verdicts(report, "directory", "key", "data", "peers") == [NOT_CHECKED] * 4
    nowhere = await examine(tmp_path / "nowhere")
    assert found(nowhere, "directory").verdict is PROBLEM
    assert "shoal init" in found(nowhere, "configuration").fix


def test_torch_is_never_loaded_into_the_command(tmp_path: Path) -> None:
    (home,) = found_mesh(tmp_path / "mesh", nodes=1)
    code = (
        "import asyncio, sys; from pathlib import Path; from shoal.node.doctor import examine;"
        "asyncio.run(examine(Path(sys.argv[1])));"
        "print([each for each in ('torch', 'transformers') if each in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# --- what is printed ------------------------------------------------------------------------------


def report_of(*findings: Finding) -> Report:
    return Report("/srv/node", "ab" * 32, "cd" * 32, True, 1.25, findings)


SICK = report_of(
    problem("key", "others can read /srv/node/identity.key; it is 0644", "chmod 600 it"),
    warning("fsync", "an fsync takes 60 ms " + "and that is long " * 8, "use an SSD"),
    fine("python", "3.12.1"),
    not_checked("clock", "no member told its time"),
    not_checked("protocol", "no member told its time"),
)


def printed(report: Report, width: int, *, terminal: bool) -> str:
    console = Console(width=width, force_terminal=terminal, highlight=False, color_system=None)
    with console.capture() as captured:
        print_report(console, report)
    return captured.get()


def test_a_problem_is_one_line_with_its_fix() -> None:
    lines = printed(SICK, 80, terminal=False).splitlines()
    assert "problem: others can read /srv/node/identity.key, it is 0644; fix: chmod 600 it" in lines
    (slow,) = [line for line in lines if line.startswith("warning: ")]
    assert slow.endswith("; fix: use an SSD"), "however long, where it is piped"
    assert lines[0] == "/srv/node, node abababab of mesh cdcdcdcdcdcd, running"
    assert lines[-1] == "1 problem, 1 warning, 1 fine, 2 not checked, in 1.2 s"


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_nothing_is_wider_than_it(width: int) -> None:
    text = printed(SICK, width, terminal=True)
    assert max(map(len, text.splitlines())) <= width
    assert "clock, protocol" in text
    assert "python" in text and "3.12.1" in text


def test_what_others_say_does_not_command_the_terminal() -> None:
    text = printed(report_of(problem("peers", "\x1b[2J", "\x07")), 80, terminal=False)
    assert "\x1b" not in text and "\x07" not in text


def test_exit_codes_tell_warnings_from_problems() -> None:
    well, warned = report_of(fine("python", "3")), report_of(warning("fsync", "slow", "an SSD"))
    assert [well.exit_code(strict=strict) for strict in (False, True)] == [OK, OK]
    assert [warned.exit_code(strict=strict) for strict in (False, True)] == [OK, WARNINGS]
    assert SICK.exit_code(strict=False) == SICK.exit_code(strict=True) == PROBLEMS


def test_the_command_prints_json_and_ends_with_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home,) = found_mesh(tmp_path / "mesh", nodes=1)
    (home / "identity.key").chmod(0o644)
    code = cli.main(["doctor", str(home), "--json"])
    plain = json.loads(capsys.readouterr().out)
    assert code == plain["exit_code"] == PROBLEMS
    assert plain["schema"] == SCHEMA and plain["running"] is None
    assert [each["check"] for each in plain["findings"]] == list(CHECKS)
    assert sum(plain["counts"].values()) == len(CHECKS)
    key = plain["findings"][CHECKS.index("key")]
    assert key == {
        "check": "key",
        "verdict": "problem",
        "what": f"others can read {home / 'identity.key'} (mode 0644)",
        "fix": f"chmod 600 {home / 'identity.key'}",
    }
    assert cli.main(["doctor", str(home)]) == PROBLEMS
    assert "problem: others can read" in capsys.readouterr().out


def test_a_library_that_does_not_load_is_a_finding_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "shoal.node.doctor")
    monkeypatch.setitem(sys.modules, "shoal.node.doctor_disk", None)
    monkeypatch.delattr("shoal.node.doctor_disk", raising=False)
    assert cli.main(["doctor", str(tmp_path)]) == PROBLEMS
    assert "does not load" in capsys.readouterr().out


def test_the_page_has_every_check_and_every_key() -> None:
    page = DOCS.read_text()
    rows = re.findall(r"^\| `([\w-]+)` \|.*\|.*\|$", page, re.MULTILINE)
    assert rows == list(CHECKS), "docs/doctor.md: a row for each check, in the order of CHECKS"
    for key in SICK.as_plain(strict=False):
        assert f"`{key}`" in page
    assert f"| {WARNINGS} |" in page and f"| {PROBLEMS} |" in page
