"""The demo's node processes: started apart from each other, found again later, ended in order.

Each is what a person would start by hand, `python -m shoal.node run DIR`, in a session of its own,
so that Ctrl-C reaches the demo alone and the demo ends them in order. A process is only ever
ended when its command line says that it runs this very directory: a pid in a file may long
belong to somebody else.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from shoal.node.errors import UserError

PID_NAME = "node.pid"
LOG_NAME = "node.log"
STOP_SECONDS = 10.0
_LOG_TAIL_BYTES = 16_384


@dataclass(slots=True)
class NodeProcess:
    """One started node."""

    directory: Path
    address: str
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        return self.directory.name

    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self.process.poll()


def start_node(directory: Path, *, address: str, max_rounds: int) -> NodeProcess:
    """Start a node of its own; what it prints goes to directory/node.log."""
    directory = directory.resolve()
    command = [sys.executable, "-m", "shoal.node", "run", str(directory)]
    command += ["--set", f"train.max_rounds={max_rounds}"]
    with (directory / LOG_NAME).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=clean_environment(),
            start_new_session=True,
        )
    (directory / PID_NAME).write_text(f"{process.pid}\n")
    return NodeProcess(directory=directory, address=address, process=process)


def stop_nodes(directories: Iterable[Path]) -> int:
    """End the nodes that run in these directories: SIGTERM, and SIGKILL for those that hang.

    Returns how many were running.
    """
    running = [found for found in map(running_node, directories) if found is not None]
    for process in running:
        _signal(process, signal.SIGTERM)
    _, hanging = psutil.wait_procs(running, timeout=STOP_SECONDS)
    for process in hanging:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(hanging, timeout=STOP_SECONDS)
    return len(running)


def running_node(directory: Path) -> psutil.Process | None:
    """The process that runs this node, by its pid file, when its command line agrees."""
    try:
        process = psutil.Process(int((directory / PID_NAME).read_text()))
        command = process.cmdline()
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
    except (OSError, ValueError, psutil.Error):
        return None
    ours = "shoal.node" in command and "run" in command and str(directory.resolve()) in command
    return process if ours else None


def log_tail(directory: Path, *, lines: int) -> list[str]:
    """The last lines that a node printed."""
    try:
        with (directory / LOG_NAME).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            text = log.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]


def clean_environment() -> dict[str, str]:
    """Our environment without settings: SHOAL_NODE__LISTEN would send four nodes to one port."""
    return {
        name: value
        for name, value in os.environ.items()
        if not (name.upper().startswith("SHOAL_") and "__" in name)
    }


def claim_directory(directory: Path, *, marker: str, ours: Iterable[str]) -> None:
    """Make directory an empty demo: new, or an old demo whose processes and files go away.

    marker: the file that tells a demo. ours: glob patterns of what a demo writes; anything else
    in an old demo stays. Raises UserError when it holds something that is not a demo.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; name a directory with --directory")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / marker).is_file():
        raise UserError(
            f"{directory} holds something that is not a demo; name another with --directory"
        )
    stop_nodes(directory.glob("node*"))
    for pattern in ours:
        for path in sorted(directory.glob(pattern)):
            _remove(path)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / marker).touch()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    # psutil checks that the pid was not reused since it was looked up.
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
