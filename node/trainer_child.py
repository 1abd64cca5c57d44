"""The training process, started before it is known what it will train.

Loading torch takes seconds and transformers more, on top of what fetching a mesh and opening a node
take. So torch is loaded once, by the command, which then splits in two: the child goes on loading
what training needs while the node does its own part. That comes first of all, while there is one
thread and neither gRPC nor CUDA has been touched: they do not survive a fork.
"""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from shoal.node.config import TrainSettings
from shoal.training.process import limit_threads, loading

END_S = 5.0


class TrainerChild:
    """The process, its two pipes, and the memory that it will share with the node."""

    def __init__(self, threads: int) -> None:
        """threads: of its arithmetic; torch reads that once, when it is loaded."""
        limit_threads(threads)
        with loading():
            import torch  # noqa: F401 - for both of them

        # It has no name from the start, so nothing can be left behind, and no size until the model
        # is known.
        self.memory = tempfile.TemporaryFile(  # noqa: SIM115
            prefix="shoal-", dir=_memory_directory()
        )
        commands, events = os.pipe(), os.pipe()
        self._process = multiprocessing.get_context("fork").Process(
            target=_become_trainer, args=(commands, events), name="trainer"
        )
        self._process.start()
        os.close(commands[0])
        os.close(events[1])
        self.commands: IO[bytes] = os.fdopen(commands[1], "wb", buffering=0)
        self.events: IO[bytes] = os.fdopen(events[0], "rb", buffering=0)
        with suppress(BrokenPipeError):
            self.commands.write(command_line({"cmd": "prepare", "threads": threads}))

    def wait(self) -> None:
        """Wait for its end, which comes with that of its input, or else is made to (blocks)."""
        self._process.join(END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def end(self) -> None:
        """End it, where nobody else has (blocks)."""
        for pipe in (self.commands, self.events):
            with suppress(OSError):
                pipe.close()
        self.wait()
        self.memory.close()


def _become_trainer(commands: tuple[int, int], events: tuple[int, int]) -> NoReturn:
    """What `python -m shoal.training.worker` does, in this process."""
    # The parent's ends: while they were open here, the child would outlive its node.
    os.close(commands[1])
    os.close(events[0])
    os.dup2(commands[0], 0)
    os.dup2(events[1], 1)
    # Ctrl-C on a terminal reaches the whole group; the child ends when its input does.
    os.setsid()
    with suppress(OSError):
        Path("/proc/self/comm").write_text("shoal-trainer")
    from shoal.training.worker import main

    main()


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
