"""Several processes that train as one, on a GPU each: torch's DDP averages their gradients.

The training process that the node knows is rank 0. It starts the others, which read nothing but
what it writes to their stdin: commands as JSON lines, in the order of the collectives that follow.
Each takes its part of every batch, and makes the same step from the same averaged gradient; what is
a delta, an evaluation or a rebase, rank 0 does alone.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from shoal.training.errors import TrainingError
from shoal.training.model import FlatModel

# How long a rank that a collective failed with may take to be gone.
END_S = 5.0
Loss = Callable[[Any, np.random.Generator | None], torch.Tensor]


class _ShareOfLoss(torch.nn.Module):
    """What DDP calls: it follows a module's own forward, and a task may call another method."""

    def __init__(self, model: FlatModel, rank: int, processes: int) -> None:
        super().__init__()
        self.module = model.module
        self._share = model.share_of_loss
        self._part = (rank, processes)

    def forward(self, windows: Any, masks: np.random.Generator | None) -> torch.Tensor:
        return self._share(windows, masks, *self._part)


def join_group(model: FlatModel, *, rank: int, processes: int, meeting: str) -> Loss:
    """Meet the other ranks and return the loss whose gradients all of them average (blocks).

    meeting: path of a file that they share. Raises TrainingError where they cannot meet.
    """
    # A group is in one machine: nobody else may connect to it.
    for backend in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo")
    on_gpu = model.device.type == "cuda"
    try:
        if on_gpu:
            torch.cuda.set_device(model.device)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=dist.FileStore(meeting, processes),  # type: ignore[attr-defined]
            rank=rank,
            world_size=processes,
        )
        return DistributedDataParallel(
            _ShareOfLoss(model, rank, processes), broadcast_buffers=False
        )
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise TrainingError(f"the processes of this node cannot train together: {why}") from None


class Leader:
    """Rank 0's end: the other ranks, and what they are told."""

    def __init__(
        self, configuration: Mapping[str, Any], processes: int, on_end: Callable[[str], object]
    ) -> None:
        """Start them, without waiting; on_end: told, from another thread, which one ended and why.

        configuration: what this process was configured with.
        """
        self.processes = processes
        self._on_end = on_end
        self._directory = tempfile.mkdtemp(prefix="shoal-group-")
        self.meeting = str(Path(self._directory) / "meeting")
        self._ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "shoal.training.group_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(1, processes)
        ]
        for rank, process in enumerate(self._ranks, 1):
            watch = threading.Thread(target=self._watch, args=(rank, process), daemon=True)
            watch.start()
            self._write(process, {**configuration, "rank": rank, "meeting": self.meeting})

    def join(self, model: FlatModel) -> Loss:
        """As `join_group`."""
        loss = join_group(model, rank=0, processes=self.processes, meeting=self.meeting)
        if model.device.type == "cpu":  # NCCL may go on asking there.
            shutil.rmtree(self._directory, ignore_errors=True)
        return loss

    def share_weights(self, weights: torch.Tensor) -> None:
        """Give all ranks these weights [P], in their place."""
        with self._explained():
            self._tell(cmd="weights")
            dist.broadcast(weights, 0)

    @contextmanager
    def step(self, **where: Any) -> Iterator[None]:
        """Let the others make the step that this process makes inside."""
        with self._explained():
            self._tell(cmd="step", **where)
            yield

    def mean(self, total: torch.Tensor) -> torch.Tensor:
        """Return the mean over the ranks of what each has added up since it was last asked."""
        with self._explained():
            self._tell(cmd="loss")
            dist.all_reduce(total)
        return total / self.processes

    def _tell(self, **command: Any) -> None:
        for process in self._ranks:
            self._write(process, command)

    def _write(self, process: "subprocess.Popen[bytes]", command: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # It has ended: _watch says so.
            process.stdin.write(json.dumps(dict(command)).encode() + b"\n")
            process.stdin.flush()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What a collective says of a rank that is gone helps nobody: _watch knows better."""
        try:
            yield
        except RuntimeError:
            for process in self._ranks:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)
                    # _watch ends this process as soon as it has seen it too.
                    threading.Event().wait(END_S)
            raise

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        why = ""
        assert process.stdout is not None
        for line in process.stdout:
            with suppress(ValueError):
                why = str(json.loads(line)["message"])
        code = process.wait()
        if not why and code < 0:
            why = f"it was ended by signal {signal.Signals(-code).name}"
        self._on_end(
            f"process {rank} of the {self.processes} that train here has ended: "
            f"{why or f'exit code {code}'}"
        )
