"""What lies in a node's directory, each fault provoked on real files."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.node.backup import export_key
from shoal.node.config import RetentionSettings
from shoal.node.doctor_disk import (
    DiskFacts,
    disk_facts,
    file_system_of,
    judge_directory,
    judge_file_system,
    judge_fsync,
    judge_space,
    space_needed,
)
from shoal.node.doctor_findings import Finding, Verdict
from shoal.node.doctor_place import (
    GenesisFacts,
    genesis_facts,
    judge_backup,
    judge_genesis,
    judge_key,
    judge_text,
    judge_votes,
    key_facts,
    text_facts,
    vote_facts,
)
from shoal.node.genesis import load_genesis
from shoal.node.identity import Identity
from tests.node.mesh import found_mesh

PROBLEM, WARNING, FINE, NOT_CHECKED = (
    Verdict.PROBLEM,
    Verdict.WARNING,
    Verdict.FINE,
    Verdict.NOT_CHECKED,
)


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return found_mesh(tmp_path_factory.mktemp("doctor") / "mesh", nodes=1)[0]


@pytest.fixture
def home(founded: Path, tmp_path: Path) -> Path:
    """A node's directory, to spoil."""
    return Path(shutil.copytree(founded, tmp_path / "node"))


def key_of(home: Path) -> Finding:
    return judge_key(key_facts(home)[0])


def test_a_good_key_loads(home: Path) -> None:
    facts, identity = key_facts(home)
    assert identity is not None and facts.node_id == identity.node_id
    assert key_of(home).verdict is FINE


def test_a_key_that_others_can_read(home: Path) -> None:
    (home / "identity.key").chmod(0o644)
    found = key_of(home)
    assert (found.verdict, found.fix) == (PROBLEM, f"chmod 600 {home / 'identity.key'}")
    assert "mode 0644" in found.what


def test_a_key_that_is_gone_or_damaged(home: Path) -> None:
    (home / "identity.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    found = key_of(home)
    assert found.verdict is PROBLEM and "is damaged" in found.what
    (home / "identity.key").unlink()
    found = key_of(home)
    assert found.verdict is PROBLEM and "shoal identity import" in found.fix


def test_a_key_of_somebody_else(home: Path) -> None:
    facts = replace(key_facts(home)[0], owner=4711, me=1000)
    found = judge_key(facts)
    assert found.verdict is PROBLEM and "user 4711" in found.what
    assert judge_key(replace(facts, me=0)).verdict is WARNING, "root can read it"


def test_a_key_has_a_copy_or_it_is_said(home: Path, tmp_path: Path) -> None:
    node_id = Identity.load(home / "identity.key").node_id
    found = judge_backup(home, node_id)
    assert found.verdict is WARNING
    assert found.what.endswith("its membership is lost")
    assert f"shoal identity export {home} FILE" in found.fix
    export_key(home, tmp_path / "copy.pem", "a long passphrase")
    assert judge_backup(home, node_id).verdict is FINE


def test_votes_that_are_gone_are_worse_than_none(home: Path) -> None:
    assert judge_votes(vote_facts(home)).verdict is FINE, "it has never started"
    (home / "boots").write_text("3\n")
    found = judge_votes(vote_facts(home))
    assert found.verdict is PROBLEM and "has started 3 times" in found.what
    (home / "safety.db").write_bytes(b"SQLite format 3\x00" + bytes(84))
    assert judge_votes(vote_facts(home)).verdict is FINE
    (home / "safety.db").write_bytes(bytes(100))
    assert judge_votes(vote_facts(home)).verdict is PROBLEM
    (home / "boots").write_text("three\n")
    assert "boots file" in judge_votes(vote_facts(home)).what


def test_the_genesis_is_read_as_the_node_reads_it(home: Path) -> None:
    genesis, _, _ = load_genesis(home / "genesis")
    facts = genesis_facts(home)
    assert facts.mesh_id == genesis.mesh_id
    assert facts.parameters == genesis.schema.layout.total
    assert facts.founders == tuple((f.node_id, f.address) for f in genesis.founders)
    assert judge_genesis(facts).verdict is FINE


def test_a_genesis_with_something_missing(home: Path) -> None:
    def judged() -> str:
        found = judge_genesis(genesis_facts(home))
        assert found.verdict is PROBLEM
        return found.what

    tokenizer = next((home / "genesis" / "tokenizer").iterdir())
    tokenizer.unlink()
    assert tokenizer.name in judged()
    (home / "genesis" / "anchor.bin").write_bytes(b"abc")
    assert "anchor.bin" in judged()
    (home / "genesis" / "genesis.json").write_text(json.dumps({"founders": 7}))
    assert "not a genesis document" in judged()
    (home / "genesis" / "genesis.json").unlink()
    assert "No such file" in judged()
    assert isinstance(genesis_facts(home), GenesisFacts)


def text_of(source: Path | str, *, sequence: int = 16) -> Finding:
    return judge_text(text_facts(str(source)), sequence=sequence, enabled=True)


def test_text_that_cannot_be_trained_on(tmp_path: Path) -> None:
    assert text_of("builtin:0/4").verdict is FINE
    assert text_of("builtin:4/4").verdict is PROBLEM
    missing = text_of(tmp_path / "nowhere")
    assert missing.verdict is PROBLEM and "does not exist" in missing.what
    assert text_of(tmp_path).verdict is PROBLEM, "an empty directory"
    (tmp_path / "short.txt").write_text("too short")
    short = text_of(tmp_path)
    assert short.verdict is PROBLEM and "34 tokens are needed" in short.what
    (tmp_path / "long.txt").write_text("long enough for this\n" * 100)
    assert text_of(tmp_path).verdict is FINE
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1") * 10)
    assert "not UTF-8" in text_of(tmp_path).what
    off = judge_text(text_facts(str(tmp_path)), sequence=16, enabled=False)
    assert off.verdict is NOT_CHECKED


def test_much_text_is_not_read_to_its_end(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text("a line of text that goes on\n" * 10_000)
    facts = text_facts(str(tmp_path))
    assert not facts.all_seen and facts.bytes_seen < 2 << 20
    assert "and more" in text_of(tmp_path).what


def test_a_directory_that_can_be_written_to_is_left_as_it_was(home: Path) -> None:
    before = home.stat().st_mtime_ns, sorted(os.listdir(home))
    facts = disk_facts(home)
    assert judge_directory(facts).verdict is FINE
    assert (home.stat().st_mtime_ns, sorted(os.listdir(home))) == before
    assert len(facts.fsync_ms) >= 1 and min(facts.fsync_ms) > 0
    assert facts.used > 1000


def test_a_directory_that_cannot_be_written_to() -> None:
    # Not even root writes there.
    found = judge_directory(disk_facts(Path("/proc/self")))
    assert found.verdict is PROBLEM and "cannot be written to" in found.what
    assert judge_fsync(disk_facts(Path("/proc/self"))).verdict is NOT_CHECKED
    assert judge_directory(disk_facts(Path("/nonexistent"))).verdict is PROBLEM


_FULL = """
import os, subprocess, sys
from pathlib import Path
place = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=True)
try:
    (place / "filler").write_bytes(bytes(1 << 20))
except OSError:
    pass
from shoal.node.doctor_disk import disk_facts, judge_directory, judge_file_system
facts = disk_facts(place)
print(judge_directory(facts).what, "|", judge_file_system(facts).what)
"""


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    unshared = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshared, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives its users no mounts of their own")
    done = subprocess.run(
        [*unshared, sys.executable, "-c", _FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "the disk is full" in done.stdout
    assert "in memory (tmpfs)" in done.stdout


def test_room_for_checkpoints() -> None:
    anchor, retention = 100 << 20, RetentionSettings(keep_whole=2, archived_max=16)
    needed = space_needed(anchor, retention)
    assert needed > anchor * (1 + 2 * 3 + 16)

    def judged(free: int, used: int = 0) -> Verdict:
        facts = DiskFacts("d", free=free, total=1 << 50, used=used)
        return judge_space(facts, anchor, retention).verdict

    assert judged(needed) is FINE
    assert judged(needed - 1) is WARNING
    assert judged(needed - 1, used=anchor) is FINE, "what it has already is not needed again"
    assert judged(2 * anchor) is PROBLEM


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("ext4", FINE),
        ("xfs", FINE),
        ("tmpfs", WARNING),
        ("overlay", WARNING),
        ("nfs4", WARNING),
        ("fuse.sshfs", WARNING),
        ("cifs", WARNING),
        ("", NOT_CHECKED),
    ],
)
def test_kinds_of_file_system(kind: str, verdict: Verdict) -> None:
    assert judge_file_system(DiskFacts("d", kind=kind)).verdict is verdict


def test_the_kind_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    here = tmp_path.resolve()
    (here / "a disk" / "node").mkdir(parents=True)
    mounts = here / "mounts"
    blank = str(here).replace(" ", "\\040")
    mounts.write_text(
        f"disk / ext4 rw 0 0\nserver:/x {blank} nfs4 rw 0 0\n"
        f"y {blank}/a\\040disk fuse.sshfs rw 0 0\nz {blank}/a xfs rw 0 0\nbroken\n"
    )
    assert file_system_of(here, mounts) == "nfs4"
    assert file_system_of(here / "a disk" / "node", mounts) == "fuse.sshfs"
    assert file_system_of(Path("/"), mounts) == "ext4"
    assert file_system_of(here, here / "nothing") == ""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no memory file system here")
def test_a_real_memory_file_system_is_known_as_one() -> None:
    assert file_system_of(Path("/dev/shm")) == "tmpfs"


def test_a_slow_fsync_is_a_warning_and_one_slow_one_is_not() -> None:
    assert judge_fsync(DiskFacts("d", fsync_ms=(1.0, 2.0, 500.0))).verdict is FINE
    slow = judge_fsync(DiskFacts("d", fsync_ms=(19.0, 21.0, 22.0)))
    assert slow.verdict is WARNING and "21 ms" in slow.what
