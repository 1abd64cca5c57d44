"""What a node keeps for an audit, and how little of it a kill can take away."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.consensus.certificate import Certificate, parse_certificate
from shoal.consensus.votes import VoteKind
from shoal.node.capture import (
    NOBODY,
    Capture,
    Captured,
    Direction,
    captures_of,
    open_capture,
    read_capture,
    read_decision,
)
from shoal.node.config import ConsensusSettings, NodeSettings, Settings
from tests.node.mesh import found_mesh, running, until

PEER = bytes(range(32))


def written(path: Path) -> list[Captured]:
    capture = Capture(path)
    capture.write(Direction.RECEIVED, PEER, b"one")
    capture.write(Direction.SENT, PEER, b"")
    capture.write(Direction.BROADCAST, NOBODY, b"three" * 1000)
    capture.close()
    return list(read_capture(path))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    records = written(tmp_path / "capture" / "1.bin")
    assert [record.direction for record in records] == [1, 2, 3]
    assert [record.data for record in records] == [b"one", b"", b"three" * 1000]
    assert [record.peer for record in records] == [PEER, PEER, NOBODY]
    assert records[0].time_ms <= records[2].time_ms


def test_a_decision_keeps_its_certificate(tmp_path: Path) -> None:
    certificate = Certificate(VoteKind.COMMIT, 3, 2, 7, bytes(32), (0, 1), (bytes(64),) * 2)
    capture = Capture(tmp_path / "capture" / "1.bin")
    capture.decided(certificate)
    capture.close()
    (record,) = read_capture(tmp_path / "capture" / "1.bin")
    decision = read_decision(record.data)
    assert (decision.sequence, decision.epoch, decision.digest) == (7, 3, bytes(32))
    assert parse_certificate(decision.certificate) == certificate


@pytest.mark.parametrize("cut", [1, 8, 40, 5000])
def test_a_torn_tail_costs_the_last_record_only(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "capture" / "1.bin"
    whole = written(path)
    os.truncate(path, path.stat().st_size - cut)
    assert list(read_capture(path)) == whole[:2]


def test_reading_ends_where_a_bit_was_flipped(tmp_path: Path) -> None:
    path = tmp_path / "capture" / "1.bin"
    whole = written(path)
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    assert list(read_capture(path)) == whole[:2]


def test_each_start_has_a_file_of_its_own(tmp_path: Path) -> None:
    settings = Settings(
        node=NodeSettings(directory=tmp_path), consensus=ConsensusSettings(capture=True)
    )
    for boot in (1, 2):
        capture = open_capture(settings, boot)
        assert capture is not None
        capture.close()
    assert [path.name for path in captures_of(tmp_path)] == ["000001.bin", "000002.bin"]
    assert open_capture(Settings(), 1) is None


WRITES_FOR_EVER = """
import sys
from pathlib import Path
from shoal.node.capture import Capture, Direction
capture = Capture(Path(sys.argv[1]))
number = 0
while True:
    capture.write(Direction.SENT, bytes(32), number.to_bytes(8, "big") * 500)
    print(number, flush=True)
    number += 1
"""


def test_whatever_was_said_before_a_kill_is_there(tmp_path: Path) -> None:
    path = tmp_path / "capture" / "1.bin"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        said = 0
        while said < 200:
            said = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        said = max([said, *(int(line) for line in process.stdout if line.endswith("\n"))])
    numbers = [int.from_bytes(record.data[:8], "big") for record in read_capture(path)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > said, "a record is written before the next thing happens"


def test_nodes_keep_what_they_say_and_hear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CONSENSUS__CAPTURE", "true")
    directories = found_mesh(tmp_path / "mesh")

    async def story() -> None:
        async with running(directories, rounds=4) as nodes:
            await until(lambda: all(node.height >= 1 for node in nodes), nodes)

    asyncio.run(story())
    for directory in directories:
        (path,) = captures_of(directory)
        directions = {record.direction for record in read_capture(path)}
        assert directions >= {Direction.RECEIVED, Direction.BROADCAST, Direction.DECIDED}
