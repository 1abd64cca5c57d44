"""Copies of a key: locked, read back, brought back, and never a second life for its votes."""

import stat
from pathlib import Path

import pytest

from shoal.node.backup import backup_warnings, export_key, import_key
from shoal.node.cli import main
from shoal.node.database import Database
from shoal.node.errors import DamagedError, UserError
from shoal.node.identity import Identity
from tests.node.mesh import found_mesh

PASSPHRASE = "the shoal has no leader"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "node"
    path.mkdir()
    Identity.create(path / "identity.key")
    return path


def test_a_copy_is_locked_and_brings_the_key_back(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pem"
    node_id = export_key(home, copy, PASSPHRASE).node_id
    text = copy.read_text()
    assert text.startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    again = tmp_path / "again"
    assert import_key(copy, again, PASSPHRASE).node_id == node_id
    assert Identity.load(again / "identity.key").node_id == node_id
    with pytest.raises(UserError, match="passphrase is wrong"):
        import_key(copy, tmp_path / "other", PASSPHRASE + "!")
    assert not (tmp_path / "other").exists()


def test_there_is_a_warning_until_there_is_a_copy(home: Path, tmp_path: Path) -> None:
    node_id = Identity.load(home / "identity.key").node_id
    (warning,) = backup_warnings(home, node_id)
    assert f"shoal identity export {home}" in warning
    export_key(home, tmp_path / "copy.pem", PASSPHRASE)
    assert backup_warnings(home, node_id) == []
    assert backup_warnings(home, bytes(32)), "a copy of another key is none"


def test_a_key_without_its_votes_does_not_start(home: Path, tmp_path: Path) -> None:
    copy, elsewhere = tmp_path / "copy.pem", tmp_path / "elsewhere"
    export_key(home, copy, PASSPHRASE)
    import_key(copy, elsewhere, PASSPHRASE)
    with pytest.raises(DamagedError, match="forgot its votes"):
        Database(elsewhere / "safety.db")


def test_a_key_comes_back_to_its_votes(home: Path, tmp_path: Path) -> None:
    import asyncio

    asyncio.run(Database(home / "safety.db").close())
    export_key(home, tmp_path / "copy.pem", PASSPHRASE)
    (home / "identity.key").unlink()
    import_key(tmp_path / "copy.pem", home, PASSPHRASE)
    again = Database(home / "safety.db")
    assert again.boots == 2
    asyncio.run(again.close())


def test_nothing_is_written_over_anything(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pem"
    with pytest.raises(UserError, match="at least 10 characters"):
        export_key(home, copy, "short")
    assert not copy.exists()
    export_key(home, copy, PASSPHRASE)
    with pytest.raises(UserError, match="exists already"):
        export_key(home, copy, PASSPHRASE)
    with pytest.raises(UserError, match="has a key already"):
        import_key(copy, home, PASSPHRASE)
    copy.write_bytes(b"-" * 100_000)
    with pytest.raises(UserError, match="cannot be opened"):
        import_key(copy, tmp_path / "other", PASSPHRASE)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home,) = found_mesh(tmp_path / "mesh", nodes=1)
    node_id = Identity.load(home / "identity.key").node_id.hex()
    secret, copy = tmp_path / "passphrase", tmp_path / "copy.pem"
    secret.write_text(f"{PASSPHRASE}\n")
    locked = ("--passphrase-file", str(secret))
    assert main(["identity", "show", str(home)]) == 0
    shown = capsys.readouterr().out
    assert node_id in shown and "shoal invite" in shown and "no backup" in shown
    assert main(["identity", "export", str(home), str(copy), *locked]) == 0
    assert main(["identity", "import", str(copy), str(tmp_path / "new"), *locked]) == 0
    capsys.readouterr()
    assert main(["identity", "show", str(home)]) == 0
    assert "backup made" in capsys.readouterr().out
    assert main(["identity", "import", str(copy), str(home), *locked]) == 2
    assert main(["identity", "show", str(tmp_path / "nowhere")]) == 2
