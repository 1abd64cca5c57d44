"""Wrong input gets one line that says what to do, an exit code, and no traceback; nothing on the
disk changes because of it."""

import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.node.config import load_settings
from shoal.node.identity import Identity
from shoal.node.invitations import as_line
from tests.integration.processes import (
    command,
    invite,
    materialised_height,
    run_node,
    wait_until,
)
from tests.node.inviting import invitation_of_nobody
from tests.node.mesh import found_mesh

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("bad-input")]


def shoal(*words: str | Path) -> tuple[int, str]:
    """Run a command that must fail; returns its exit code and its one line."""
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return done.returncode, errors[0]


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a mesh of one that has committed a checkpoint and stopped."""
    (directory,) = found_mesh(tmp_path_factory.mktemp("mesh") / "mesh", nodes=1)
    address = load_settings(directory).node.inspect_listen
    process = run_node(directory, "train.max_rounds=3")
    wait_until(lambda: materialised_height(address) >= 1, [process])
    assert process.stop() == 0
    return directory


@pytest.fixture
def node(founded: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(founded, tmp_path / "node"))


def test_a_port_in_use(node: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, line = shoal("run", node, "--listen", f"127.0.0.1:{port}")
    assert code == 2
    assert "in use" in line


def test_nothing_is_said_in_the_clear_beyond_this_machine(node: Path) -> None:
    code, line = shoal("run", node, "--set", "node.inspect=0.0.0.0:7600")
    assert code == 2
    assert "not encrypted" in line


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _newest(node: Path, name: str) -> Path:
    height = max(int(entry.name) for entry in (node / "checkpoints").iterdir())
    (found,) = (node / "checkpoints" / str(height)).glob(name)
    return found


@pytest.mark.parametrize(
    "name", ["chunks/*", "manifest.bin", "operation.bin", "certificate.bin", "settled.bin"]
)
@pytest.mark.parametrize("damage", [_cut_short, _flip_a_bit], ids=["cut short", "a bit flipped"])
def test_a_corrupt_checkpoint(node: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(_newest(node, name))
    code, line = shoal("run", node)
    assert code == 4
    assert "checkpoints" in line
    assert "move that directory away" in line


def test_a_corrupt_database(node: Path) -> None:
    path = node / "safety.db"
    path.write_bytes(b"not a database" + path.read_bytes()[14:])
    assert shoal("run", node)[0] == 4


def test_a_lost_database(node: Path) -> None:
    (node / "safety.db").unlink()
    code, line = shoal("run", node)
    assert code == 4
    assert "must not vote again" in line


def test_a_database_from_a_backup(node: Path) -> None:
    backup = (node / "safety.db").read_bytes()
    assert shoal("run", node, "--set", "train.data=/nowhere")[0] == 2
    for leftover in node.glob("safety.db*"):
        leftover.unlink()
    (node / "safety.db").write_bytes(backup)
    code, line = shoal("run", node)
    assert code == 4
    assert "restored backup" in line


def test_a_corrupt_genesis(node: Path) -> None:
    _flip_a_bit(node / "genesis" / "anchor.bin")
    code, line = shoal("run", node)
    assert code == 4
    assert "genesis" in line


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.data=/nowhere/at/all", "does not exist"),
        ("train.device=cuda:9", "cuda"),
        ("train.batsh=3", "train.batch"),
    ],
)
def test_settings_that_cannot_be(node: Path, setting: str, words: str) -> None:
    code, line = shoal("run", node, "--set", setting)
    assert code == 2
    assert words in line


def test_an_empty_shard(node: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    code, line = shoal("run", node, "--set", f"train.data={empty}")
    assert code == 2
    assert str(empty) in line


def test_an_unknown_model(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "lama"}')
    code, line = shoal("init", tmp_path / "mesh", "--model", config)
    assert code == 2
    assert "lama" in line
    assert not list((tmp_path / "mesh").glob("*/identity.key"))


def test_joining_where_nobody_is_and_the_wrong_mesh(founded: Path, tmp_path: Path) -> None:
    code, line = shoal("join", "127.0.0.1:1", "--dir", tmp_path / "a", "--insecure-first-use")
    assert code == 2
    assert "shoal invite" in line
    nobody = ("--token", as_line(invitation_of_nobody()))
    code, line = shoal("join", *nobody, "--dir", tmp_path / "a")
    assert code == 3
    assert "no node answers at 127.0.0.1:1" in line
    late = ("--token", as_line(invitation_of_nobody(expires_ms=1)))
    code, line = shoal("join", *late, "--dir", tmp_path / "a")
    assert code == 1
    assert "good until 1970" in line and "shoal invite" in line
    code, line = shoal("invite", founded)
    assert code == 3
    process = run_node(founded, "train.enabled=false")
    try:
        places = load_settings(founded).node
        address = places.inspect_listen
        wait_until(lambda: materialised_height(address) >= 1, [process])
        code, line = shoal("invite", founded, "--ttl", "1y")
        assert code == 2
        assert "30m, 24h or 7d" in line
        arguments = ("join", places.join_listen, "--dir", tmp_path / "b")
        me = Identity.load(founded / "identity.key").node_id.hex()
        code, line = shoal(*arguments, *nobody, "--trust-id", me)
        assert code == 2
        assert "wrong mesh" in line
        code, line = shoal(*arguments, "--token", invite(founded)[:-9])
        assert code == 2
        assert "copy the whole line" in line
        code, line = shoal(*arguments, "--token", invite(founded), "--mesh", "00" * 32)
        assert code == 2
        assert "wrong mesh" in line
        assert not (tmp_path / "b").exists()
    finally:
        process.stop()
