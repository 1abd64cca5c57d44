"""Real node processes, started as a person starts them, and watched through Inspect."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil

from shoal.proto.inspect_pb2 import StatusReply, StatusRequest
from shoal.proto.inspect_pb2_grpc import InspectStub

QUICK = (
    "train.batch=2",
    "train.sequence=16",
    "consensus.base_timeout_s=1",
    "consensus.candidate_timeout_s=2",
    "gossip.summary_interval_s=1",
)


def command(*words: str | Path) -> list[str]:
    """The shoal command line, as this Python runs it."""
    return [sys.executable, "-m", "shoal.node", *map(str, words)]


class Process:
    """One `shoal` process and what it wrote."""

    def __init__(self, directory: Path, *words: str | Path, extra: tuple[str, ...] = ()) -> None:
        self.directory = directory
        settings = [word for setting in (*QUICK, *extra) for word in ("--set", setting)]
        self.log = directory.with_name(f"{directory.name}.log")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command(*words, *settings),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "SHOAL_LOG__FORMAT": "json"},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def kill(self) -> None:
        """Kill -9 of exactly this process."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=30)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        lines = self.log.read_text(errors="replace").splitlines()
        parsed = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in parsed if line.get("event") == name]


def invite(directory: Path, *words: str) -> str:
    """The line that `shoal invite DIRECTORY` prints."""
    done = subprocess.run(
        command("invite", directory, *words),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    return line


def run_node(directory: Path, *extra: str) -> Process:
    """`shoal run DIRECTORY`."""
    return Process(directory, "run", directory, extra=extra)


def status(address: str) -> StatusReply | None:
    """A node's state, None when it does not answer."""
    with grpc.insecure_channel(address) as channel:
        try:
            return InspectStub(channel).Status(StatusRequest(), timeout=5)
        except grpc.RpcError:
            return None


def wait_until(
    condition: Callable[[], bool], processes: list[Process], *, seconds: float = 120.0
) -> None:
    """Wait for a condition; a process that ends meanwhile fails the test with its last lines."""
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes:
            if not process.alive:
                tail = process.log.read_text(errors="replace").splitlines()[-15:]
                raise AssertionError(f"{process.directory.name} ended:\n" + "\n".join(tail))
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)


def materialised_height(address: str) -> int:
    """The newest height whose anchor the node at `address` has rebuilt."""
    reply = status(address)
    if reply is None:
        return -1
    return max((c.height for c in reply.checkpoints if c.materialised), default=0)


def root_at(address: str, height: int) -> str:
    """The certified root of a height, as the node at `address` tells it."""
    reply = status(address)
    assert reply is not None
    return {c.height: c.root for c in reply.checkpoints}[height]
