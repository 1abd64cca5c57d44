"""The command line as a person meets it: answers, one-line errors, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from shoal.node import cli
from shoal.node.cli_options import parse_overrides
from shoal.node.errors import BAD_INPUT, DAMAGED, INTERNAL, INTERRUPTED, OK, UNREACHABLE, UserError
from shoal.node.ports import free_ports
from tests.node.fake_node import example_reply, fake_node

COMMANDS = [command.callback for command in cli.app.registered_commands]


class Outcome:
    """What a person sees of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def complaint(self) -> str:
        """The one line on stderr."""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.out + self.err
        return self.err.removeprefix("error: ").rstrip("\n")


class Shoal:
    """Runs the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Outcome:
        code = cli.main(arguments)
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)


@pytest.fixture
def shoal(capsys: pytest.CaptureFixture[str]) -> Shoal:
    return Shoal(capsys)


def unused_address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


def test_status_shows_what_the_node_answers(shoal: Shoal) -> None:
    with fake_node(example_reply()) as address:
        outcome = shoal("status", address)
    assert outcome.code == OK
    assert "round 17 of 32" in outcome.out
    assert "\x1b" not in outcome.out


def test_status_as_json_is_one_object_for_programs(shoal: Shoal) -> None:
    with fake_node(example_reply()) as address:
        plain = json.loads(shoal("status", address, "--json").out)
    assert plain["consensus"]["quorum"] == 3
    assert [each["height"] for each in plain["checkpoints"]] == [1, 2]


def test_a_watch_goes_on_until_the_node_stops_and_says_so(shoal: Shoal) -> None:
    with fake_node(example_reply()) as address:
        outcome = shoal("status", address, "--watch", "--json")
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    assert [answer["uptime_seconds"] for answer in answers] == [125.0, 1.0, 2.0]
    assert outcome.code == UNREACHABLE
    assert "is stopping" in outcome.complaint()


def test_checkpoints_and_peers_come_as_tables_and_as_json(shoal: Shoal) -> None:
    with fake_node(example_reply()) as address:
        assert "signatures" in shoal("checkpoints", address).out
        assert "connection refused" in shoal("peers", address).out
        assert json.loads(shoal("checkpoints", address, "--json").out)[0]["round"] == 8
        assert json.loads(shoal("peers", address, "--json").out)[1]["state"] == "unreachable"


def test_peers_of_a_directory_say_who_is_dead_and_why(shoal: Shoal, tmp_path: Path) -> None:
    reply = example_reply()
    reply.peers[1].liveness, reply.peers[1].why = "dead", "its link ended 3.0 s ago"
    reply.peers[1].accusers.append("33" * 32)
    with fake_node(reply) as address:
        (tmp_path / "node.toml").write_text(f'[node]\ninspect = "{address}"\n')
        outcome = shoal("peers", str(tmp_path))
        assert "its link ended 3.0 s ago" in outcome.out and "33333333" in outcome.out
        plain = json.loads(shoal("peers", str(tmp_path), "--json").out)
        assert plain[1]["liveness"] == "dead"


def test_explain_as_words_and_as_json(shoal: Shoal) -> None:
    with fake_node(example_reply()) as address:
        assert "waited for" in shoal("explain", "17", address).out
        assert json.loads(shoal("explain", "17", address, "--json").out)["height"] == 3
        unknown = shoal("explain", "999", address)
        assert unknown.code == BAD_INPUT
        assert "knows nothing of round 999" in unknown.complaint()


def test_health_is_its_exit_code(shoal: Shoal) -> None:
    with fake_node(example_reply()) as address:
        assert shoal("health", address).code == OK
        unknown = shoal("health", address, "--service", "nothing")
        assert (unknown.code, unknown.out) == (UNREACHABLE, "SERVICE_UNKNOWN\n")
    with fake_node(example_reply(), serving=False) as address:
        outcome = shoal("health", address)
        assert (outcome.code, outcome.out) == (UNREACHABLE, "NOT_SERVING\n")


@pytest.mark.parametrize("command", ["status", "checkpoints", "peers", "health"])
def test_nobody_there_is_one_line_that_says_what_to_do(shoal: Shoal, command: str) -> None:
    address = unused_address()
    outcome = shoal(command, address)
    assert outcome.code == UNREACHABLE
    assert f"no node answers at {address}" in outcome.complaint()
    assert "shoal run" in outcome.complaint()


def test_a_server_that_is_not_a_node_is_named_as_such(shoal: Shoal) -> None:
    with fake_node() as address:
        outcome = shoal("status", address)
    assert outcome.code == UNREACHABLE
    assert "not a Shoal node" in outcome.complaint()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["status", "nowhere"], "not host:port"),
        (["statu"], "Did you mean 'status'?"),
        (["status", "--jsn"], "No such option"),
        (["checkpoints", "a:1", "b:2"], "unexpected extra argument"),
        (["run"], "say which node"),
        (["run", "/nonexistent/node"], "shoal init"),
        (["run", "x", "--set", "batch"], "section.key=value"),
        (["generate", "/nonexistent", "--prompt", "x"], "holds no checkpoint"),
        (["serve", "/nonexistent"], "holds no checkpoint"),
        (["serve", "--listen", "0.0.0.0:7800"], "--api-key-file FILE"),
        (["serve", "--listen", "7800"], '--listen: "7800" is not host:port'),
        (["serve", "--api-key-file", "/dev/null"], "16 characters at least"),
        (["serve", "--api-key-file", "/nonexistent"], "No such file"),
        (["init", "somewhere", "--nodes", "99"], "31"),
        (["verify", "/nonexistent"], "not a directory"),
        (["verify", "/nonexistent", "--trust", "friends"], "neither a mesh id"),
        (["audit", "/nonexistent"], "not a directory"),
        (["demo", "--stop", "--directory", "/nonexistent"], "is not a demo"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    shoal: Shoal, arguments: list[str], expected: str
) -> None:
    outcome = shoal(*arguments)
    assert outcome.code == BAD_INPUT
    assert expected in outcome.complaint()


def test_a_wrong_setting_on_the_command_line_names_the_nearest(
    shoal: Shoal, tmp_path: Path
) -> None:
    (tmp_path / "node.toml").touch()
    outcome = shoal("run", str(tmp_path), "--set", "train.bach=4")
    assert outcome.code == BAD_INPUT
    assert "did you mean train.batch?" in outcome.complaint()


def test_values_of_set_are_toml_and_otherwise_text() -> None:
    given = ["train.batch=4", "train.enabled=false", "node.listen=127.0.0.1:1", "node.name=a=b"]
    assert parse_overrides(given) == {
        "train.batch": 4,
        "train.enabled": False,
        "node.listen": "127.0.0.1:1",
        "node.name": "a=b",
    }


@pytest.mark.parametrize("callback", COMMANDS, ids=lambda each: each.__name__)
def test_every_command_explains_itself_with_an_example(
    shoal: Shoal, callback: typer.models.CommandFunctionType
) -> None:
    outcome = shoal(callback.__name__, "--help")
    assert outcome.code == OK
    assert f"Example: shoal {callback.__name__}" in outcome.out


def test_shoal_alone_lists_the_commands(shoal: Shoal) -> None:
    outcome = shoal()
    assert outcome.code == OK
    assert all(callback.__name__ in outcome.out for callback in COMMANDS if callback)


def test_version(shoal: Shoal) -> None:
    assert shoal("version").out.startswith("shoal 0.")


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (UserError("the disk\nis damaged", DAMAGED), DAMAGED, "the disk is damaged"),
        (PermissionError(13, "Permission denied", "/x"), BAD_INPUT, "/x: Permission denied"),
    ],
)
def test_expected_errors_end_in_one_line(
    shoal: Shoal,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    expected: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "load_settings", fail)
    outcome = shoal("run", "anything")
    assert outcome.code == code
    assert outcome.complaint() == expected


def test_control_c_is_quiet(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_settings", interrupt)
    outcome = shoal("run", "anything")
    assert (outcome.code, outcome.out, outcome.err) == (INTERRUPTED, "", "")


def test_a_fault_of_ours_is_one_line_and_its_traceback_is_in_a_file(
    shoal: Shoal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(cli, "load_settings", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = shoal("run", "anything")
    assert outcome.code == INTERNAL
    [log] = tmp_path.iterdir()
    assert str(log) in outcome.complaint()
    assert "KeyError: 'surprise'" in log.read_text()


def test_asking_a_node_never_loads_torch() -> None:
    program = (
        "import sys; from shoal.node.cli import main; main(['status', '127.0.0.1:1']); "
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); sys.exit(len(heavy))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_the_module_is_the_command() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "shoal.node", "status", unused_address()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == UNREACHABLE
    assert finished.stderr.startswith("error: no node answers")


def test_a_reader_that_goes_away_is_not_an_error() -> None:
    with fake_node(example_reply()) as address:
        finished = subprocess.run(
            f"{sys.executable} -m shoal.node status {address} --json | head -c 1",
            shell=True,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert finished.stderr == ""
