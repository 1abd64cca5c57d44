"""Four real processes that watch each other: what happens to one, and when the others say so.

Times are of the processes' own log lines, so looking costs them nothing.
"""

import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from shoal.node.config import load_settings
from tests.integration.processes import Process, run_node, status, wait_until
from tests.node.mesh import found_mesh

# Enough probes that deadlines are learned.
LEARN_S = 8.0


class WatchedMesh:
    """A mesh of processes; the last one is what things happen to."""

    def __init__(
        self,
        directory: Path,
        *,
        stall: tuple[float, float] | None = None,
        extra: tuple[str, ...] = (),
    ) -> None:
        """stall: (seconds blocked, every so many seconds) of the last one's event loop; extra:
        further settings, like "train.enabled=false"."""
        self.directories = found_mesh(directory, local_steps=150, rounds_per_checkpoint=2)
        self.addresses = [load_settings(each).node.inspect_listen for each in self.directories]
        self._stall, self._extra = stall, extra
        self.processes = [run_node(each, *extra) for each in self.directories[:-1]]
        self.processes.append(self._start_last())
        wait_until(lambda: all(status(each) for each in self.addresses), self.processes)
        last = status(self.addresses[-1])
        assert last is not None
        self.victim = last.node_id
        self.others = self.processes[:-1]

    def _start_last(self) -> Process:
        directory = self.directories[-1]
        if self._stall is None:
            return run_node(directory, *self._extra)
        seconds, every_s = self._stall
        return StallingProcess(directory, seconds, every_s, self._extra)

    def close(self) -> None:
        for process in self.processes:
            if process.alive:
                process.kill()

    def settle(self) -> None:
        """Until everybody takes everybody for alive, and has had the time to learn.

        On a starved machine a living process is suspect now and then: then once more.
        """
        for _ in range(5):
            wait_until(self.all_alive, self.processes)
            time.sleep(LEARN_S)
            if self.all_alive():
                return
        raise AssertionError("somebody is always suspect in a healthy mesh")

    def all_alive(self) -> bool:
        replies = [status(address) for address in self.addresses]
        return all(
            reply is not None
            and len(reply.peers) == len(self.addresses) - 1
            and {peer.liveness for peer in reply.peers} == {"alive"}
            for reply in replies
        )

    def kill(self) -> list[float]:
        """Kill -9; seconds until each other one called it dead."""
        since = time.time()
        self.processes[-1].kill()
        return self._deaths(since)

    def restart(self) -> None:
        self.processes[-1] = self._start_last()
        self.settle()

    def freeze(self) -> list[float]:
        """SIGSTOP: nothing is closed, nothing answers; the kernel still acknowledges."""
        since = time.time()
        os.kill(self.processes[-1].pid, signal.SIGSTOP)
        try:
            return self._deaths(since)
        finally:
            os.kill(self.processes[-1].pid, signal.SIGCONT)

    def _deaths(self, since: float) -> list[float]:
        def found() -> list[float]:
            first = [self.events(each, "peer.dead", since)[:1] for each in self.others]
            return [at - since for times in first for at in times]

        wait_until(lambda: len(found()) == len(self.others), self.others, seconds=60)
        return sorted(found())

    def events(self, process: Process, name: str, since: float = 0.0) -> list[float]:
        """When a process logged this about the last one."""
        times = [
            datetime.fromisoformat(line["timestamp"]).timestamp()
            for line in process.events(name)
            if line["peer"] == self.victim[:8]
        ]
        return [at for at in times if at >= since]

    def deaths(self) -> int:
        """How often anybody called anybody dead so far."""
        return sum(len(process.events("peer.dead")) for process in self.processes)

    def suspicions(self) -> int:
        return sum(len(process.events("peer.suspect")) for process in self.processes)


class StallingProcess(Process):
    """A node whose event loop stands still now and then (tests/integration/stalling_node.py)."""

    def __init__(
        self, directory: Path, seconds: float, every_s: float, extra: tuple[str, ...]
    ) -> None:
        self.directory = directory
        self.log = directory.with_name(f"{directory.name}.log")
        words = [str(directory), str(seconds), str(every_s), *extra]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.stalling_node", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "SHOAL_LOG__FORMAT": "json"},
                cwd=Path(__file__).parents[2],
            )
