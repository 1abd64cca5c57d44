"""`shoal doctor` beside real processes: a mesh of two, then what is left of it."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from shoal.node.config import load_settings
from shoal.node.errors import OK, PROBLEMS
from tests.integration.processes import command, run_node, status, wait_until
from tests.node.mesh import found_mesh

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("processes")]


def doctor(directory: Path) -> tuple[int, dict[str, Any], float]:
    """The exit code, the findings by check, and how long it took, with the start of Python."""
    began = time.monotonic()
    done = subprocess.run(
        command("doctor", directory, "--json"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr
    report = json.loads(done.stdout)
    assert report["exit_code"] == done.returncode
    by_check = {each["check"]: each for each in report["findings"]}
    return done.returncode, by_check, time.monotonic() - began


def connected(address: str) -> bool:
    reply = status(address)
    return reply is not None and any(peer.state == "connected" for peer in reply.peers)


def test_a_mesh_of_processes_is_well_until_one_is_gone(tmp_path: Path) -> None:
    directories = found_mesh(tmp_path / "mesh", nodes=2)
    addresses = [load_settings(directory).node.inspect_listen for directory in directories]
    processes = [run_node(directory, "train.enabled=false") for directory in directories]
    try:
        wait_until(lambda: all(map(connected, addresses)), processes)
        code, found, _ = doctor(directories[0])
        assert code == OK
        for check in (
            "node",
            "listen",
            "join",
            "inspect",
            "metrics",
            "peers",
            "clock",
            "advertised",
        ):
            assert found[check]["verdict"] == "fine", found[check]
        assert "reach" in found["advertised"]["what"]
        assert status(addresses[0]) is not None, "it is none the worse for it"

        processes.pop().kill()
        wait_until(lambda: not connected(addresses[0]), processes)
        code, found, seconds = doctor(directories[0])
        assert code == PROBLEMS
        assert found["quorum"]["verdict"] == found["peers"]["verdict"] == "problem"
        assert "nothing listens there" in found["peers"]["what"]
        assert seconds < 15
    finally:
        for process in processes:
            process.stop()
