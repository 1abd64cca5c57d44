"""The nodes of a chaos run: real processes, started as a person starts them, killed as nobody
should be."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shoal.gossip.density import budget_for
from shoal.node.demo_processes import clean_environment
from shoal.node.founding import create_mesh
from shoal.node.parameters import MeshParameters
from tests.node.mesh import TEXT, TINY_MODEL

# A round of training takes about a second beside four others on two cores.
LOCAL_STEPS = 60
SETTINGS = (
    "train.batch=2",
    "train.sequence=16",
    "train.eval_batches=1",
    "consensus.base_timeout_s=1",
    "consensus.candidate_timeout_s=2",
    "consensus.capture=true",
    "gossip.summary_interval_s=1",
    "gossip.fetch_timeout_s=4",
)
STOP_SECONDS = 30.0


def found_nodes(directory: Path, *, nodes: int, host: str, ports: list[int]) -> list[Path]:
    """Make a mesh of tiny models that says a new checkpoint every few seconds."""
    text = directory / "text"
    text.mkdir(parents=True)
    for number in range(40):
        (text / f"{number}.txt").write_text(f"Story {number}. " + TEXT * 20)
    names = [f"node{index}" for index in range(nodes)]
    create_mesh(
        directory,
        nodes=nodes,
        host=host,
        ports=ports,
        data=str(text),
        model_config=TINY_MODEL,
        parameters=MeshParameters(
            local_steps=LOCAL_STEPS, rounds_per_checkpoint=2, budget=budget_for(256, nodes)
        ),
        seed=0,
        names=names,
    )
    return [directory / name for name in names]


class Cluster:
    """All nodes; index by index in the order of their directories."""

    def __init__(
        self,
        directories: list[Path],
        *,
        listen: list[str],
        extra: tuple[str, ...] = (),
        prefix: Callable[[int], list[str]] = lambda index: [],
    ) -> None:
        """`listen` is where each node listens; `prefix` stands before the command of a node."""
        self.directories = directories
        self.listen = listen
        self.starts = [0] * len(directories)
        self._extra = extra
        self._prefix = prefix
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * len(directories)

    def pids(self) -> list[int | None]:
        """The process of each node that is meant to run."""
        return [process.pid if process is not None else None for process in self._processes]

    def start(self, index: int) -> None:
        """Start a node from its own disk."""
        directory = self.directories[index]
        settings = (*SETTINGS, *self._extra, f"node.listen={self.listen[index]}")
        flags = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "-m", "shoal.node", "run", str(directory), *flags]
        with self.log(index).open("ab") as log:
            self._processes[index] = subprocess.Popen(
                [*self._prefix(index), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**clean_environment(), "SHOAL_LOG__FORMAT": "json"},
                start_new_session=True,
            )
        self.starts[index] += 1

    def kill(self, index: int) -> None:
        """Kill -9, and nobody expects it to run any more."""
        process = self._processes[index]
        assert process is not None
        self._processes[index] = None
        process.kill()
        process.wait()

    def signal(self, index: int, number: signal.Signals) -> None:
        """Send a signal to the node's own process."""
        process = self._processes[index]
        if process is not None and process.poll() is None:
            process.send_signal(number)

    def deaths(self) -> Iterator[str]:
        """One line for each node that ended though nobody killed it."""
        for index, process in enumerate(self._processes):
            if process is not None and process.poll() is not None:
                yield f"{self.name(index)} ended by itself with {process.returncode}"

    async def stop(self) -> list[str]:
        """End everything in order; one line for each node that would not."""
        running = {i: p for i, p in enumerate(self._processes) if p is not None}
        problems = list(self.deaths())
        for process in running.values():
            if process.poll() is None:
                # One that is stopped cannot hear that it should end.
                os.kill(process.pid, signal.SIGCONT)
                process.terminate()
        for index, process in running.items():
            try:
                await asyncio.to_thread(process.wait, STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                problems.append(f"{self.name(index)} did not end within {STOP_SECONDS:.0f} s")
        self._processes = [None] * len(self._processes)
        return problems

    def name(self, index: int) -> str:
        """What people call the node."""
        return self.directories[index].name

    def log(self, index: int) -> Path:
        """What the node printed, over all its lives."""
        return self.directories[index].with_name(f"{self.name(index)}.log")

    def complaints(self) -> dict[str, int]:
        """How often the nodes logged each event at level error, and `evidence`."""
        counts: dict[str, int] = {}
        for index in range(len(self.directories)):
            for line in _log_lines(self.log(index)):
                if line.get("level") in ("error", "critical") or line.get("event") == "evidence":
                    event = str(line.get("event"))
                    counts[event] = counts.get(event, 0) + 1
        return counts


def _log_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:
                continue
        elif line.startswith("Traceback"):
            yield {"level": "error", "event": "traceback"}
