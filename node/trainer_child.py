"""The training process, started before it is known what it will train.

Loading torch and transformers takes seconds, and so do fetching a mesh and opening a node: they go
on side by side. Nothing heavy is imported here, so that starting it can be the first thing that a
command does.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from shoal.node.config import TrainSettings

END_S = 5.0


class TrainerChild:
    """The process, its two pipes, and the memory that it will share with the node."""

    def __init__(self, threads: int) -> None:
        """threads: of its arithmetic; torch reads that once, when it is loaded."""
        # It has no name from the start, so nothing can be left behind, and no size until the model
        # is known.
        self.memory = tempfile.TemporaryFile(  # noqa: SIM115
            prefix="shoal-", dir=_memory_directory()
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shoal.training.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self.memory.fileno(),),
            # Ctrl-C on a terminal reaches the whole group; the child ends when its stdin does.
            start_new_session=True,
        )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(command_line({"cmd": "prepare", "threads": threads}))
            self.process.stdin.flush()

    def wait(self) -> None:
        """Wait for its end, which comes with that of its input, or else is made to (blocks)."""
        try:
            self.process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def end(self) -> None:
        """End it, where nobody else has (blocks)."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self.wait()
        self.memory.close()


@contextmanager
def training_child(train: TrainSettings) -> Iterator[TrainerChild | None]:
    """The training process of a node with these settings; None for one that does not train."""
    child = TrainerChild(train.threads) if train.enabled else None
    try:
        yield child
    finally:
        if child is not None:
            child.end()


def command_line(command: Mapping[str, Any]) -> bytes:
    """A command as the process reads it."""
    return json.dumps(command).encode() + b"\n"


def _memory_directory() -> str | None:
    # A memory file system where there is one: a page that never touches a disk.
    return "/dev/shm" if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK) else None
