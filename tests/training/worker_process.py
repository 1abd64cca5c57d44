"""The parent's end of a training process, as simple as a test needs it: it blocks."""

import json
import mmap
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.training.model import FlatModel, build_model

SLOTS = 4
WEIGHTS_IN, EVALUATE_IN = 0, 3

TINY_MODEL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

TINY_BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "vocab_size": 256,
    "mask_token_id": 255,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def tiny_settings(**changes: Any) -> dict[str, Any]:
    """Settings under which a step takes milliseconds."""
    return {
        "model": TINY_MODEL,
        "data": "builtin:0/64",
        "device": "cpu",
        "threads": 1,
        "nice": 0,
        "seed": 1,
        "batch": 4,
        "sequence": 32,
        "learning_rate": 3e-3,
        "warmup_tokens": 0,
        "schedule_tokens": 1_000_000,
        "eval_batches": 2,
        **changes,
    }


def tiny_weights(seed: int = 0) -> npt.NDArray[np.float32]:
    """Fresh weights of the tiny model."""
    weights: npt.NDArray[np.float32] = FlatModel(build_model(TINY_MODEL, seed)).flat.numpy()
    return weights


class WorkerProcess:
    """A child process and the memory shared with it."""

    def __init__(self, values: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        # What it said of its text.
        self.shard_tokens = 0
        self._file.truncate(SLOTS * values * 4)
        self._memory = mmap.mmap(self._file.fileno(), 0)
        self.slots = np.frombuffer(self._memory, dtype=np.float32).reshape(SLOTS, values)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shoal.training.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(self._file.fileno(),),
        )

    def configure(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Send the settings; returns the event that says whether it is ready."""
        self.send("configure", **settings, memory_fd=self._file.fileno())
        while (event := self.event())["event"] == "reading":
            pass
        if event["event"] == "text":
            self.shard_tokens = int(event["shard_tokens"])
            event = self.event()
        return event

    def send(self, command: str, **values: Any) -> None:
        """Send one command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"cmd": command, **values}).encode() + b"\n")
        self.process.stdin.flush()

    def event(self) -> dict[str, Any]:
        """Wait for the next event (the test's time limit is the deadline)."""
        assert self.process.stdout is not None
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        return event

    def rebase(self, weights: npt.NDArray[np.float32], **values: int) -> None:
        """Give a new starting point and wait until it is taken."""
        self.slots[WEIGHTS_IN] = weights
        self.send("rebase", **values)
        assert self.event() == {"event": "rebased"}

    def order(self, number: int, *, steps: int = 2, **further: object) -> None:
        """Queue a round."""
        self.send("round", round=number, steps=steps, tokens_done=0, tokens_per_step=128, **further)

    def delta(self, number: int) -> npt.NDArray[np.float32]:
        """Return a copy of the delta of round `number`."""
        delta: npt.NDArray[np.float32] = self.slots[1 + number % 2].copy()
        return delta

    def close(self) -> None:
        """End the child, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self._file.close()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@contextmanager
def started_worker(**changes: Any) -> Iterator[WorkerProcess]:
    """A worker of the tiny model that said "ready"."""
    worker = WorkerProcess(len(tiny_weights()))
    try:
        ready = worker.configure(tiny_settings(**changes))
        assert ready["event"] == "ready", ready
        yield worker
    finally:
        worker.close()
