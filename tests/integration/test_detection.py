"""Real processes: one that is killed is noticed at once, one that is cut off a little later, and
one that stands still is not dead. The figures of the issue are benchmarks.detector's; a test on a
busy machine allows more, and never a false death."""

import time
from pathlib import Path
from statistics import median

import pytest

from tests.integration.processes import wait_until
from tests.integration.watching import WatchedMesh

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("processes")]

STALL_WATCHED_S = 35.0
# What is measured is the nodes; training has its own priority, and tests of its own.
IDLE = ("train.enabled=false",)


def test_kill_and_silence_are_noticed(tmp_path: Path) -> None:
    mesh = WatchedMesh(tmp_path / "mesh", extra=IDLE)
    try:
        mesh.settle()
        silent = mesh.freeze()
        assert median(silent) < 9.0
        mesh.settle()
        before = mesh.deaths()
        assert median(mesh.kill()) < 3.0
        assert mesh.deaths() == before + 3, "nobody else was called dead"
    finally:
        mesh.close()


def test_a_blocked_event_loop_is_not_dead(tmp_path: Path) -> None:
    mesh = WatchedMesh(tmp_path / "mesh", stall=(2.0, 10.0), extra=IDLE)
    try:
        wait_until(lambda: mesh.suspicions() > 0, mesh.processes)
        time.sleep(STALL_WATCHED_S)
        assert mesh.deaths() == 0
    finally:
        mesh.close()
