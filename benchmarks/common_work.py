"""The work that every system is given: one model, four shards, the same batches, one evaluation.

A LlamaConfig of 1,820,352 parameters (10,720,128 where that is asked for), one token per byte; the
reference topics and the sources of the standard library, ordered by the hash of their names: a
first part that nobody trains on, and four shards of equal length. AdamW (0.9, 0.95) at 1e-3, weight
decay 0.1, 20 steps of warm-up and then level; 8 sequences of 128 tokens a step, or fewer where that
is asked for; gradients clipped at a norm of 1.

A `Worker` is the part of every rival that learns: it draws the same text, by Shoal's own functions
(training/), as a Shoal node with the same seed does at the default local steps, and takes the same
steps; a `Recipe` gives it Shoal's optimiser and a falling learning rate besides. What a system adds
is what it sends. Each keeps its weights at the marks as files, and all files are measured here,
after the run.

    python -m benchmarks.common_work evaluate DIRECTORY FILE...     # one JSON line
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from shoal.training.builtin_text import named_documents
from shoal.training.data import load
from shoal.training.evaluate import held_out_loss
from shoal.training.local_steps import LocalTrainer, Schedule
from shoal.training.model import FlatModel, build_model
from shoal.training.tokenizer import SEPARATOR, ByteTokenizer
from shoal.training.weights_file import read_weights, write_weights

WORKERS = 4
BATCH = 8
SEQUENCE = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
WARMUP_STEPS = 20
# So far away that the learning rate stays level.
SCHEDULE_TOKENS = 1 << 50
# Which text step s reads follows from the round it is in: that of a mesh with the default H.
ROUND_STEPS = 5
# An empty file of each worker, made when it begins its first step.
BEGAN = "began"
HELD_OUT_SHARE = 1 / 11
EVAL_BATCHES = 64
# Nodes of one mesh have seeds one apart.
SEED_STRIDE = 100

MODEL: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "float32",
}
MODELS: dict[str, dict[str, Any]] = {
    "2M": MODEL,
    "10M": {**MODEL, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6},
}
CONFIG_FILE = "config.json"
WORK_FILE = "work.json"
HELD_OUT_FILE = "held-out.txt"


def shard_name(index: int | str) -> str:
    """The file of a shard; "{index}" gives the pattern of all."""
    return f"shard{index}.jsonl"


def prepare(
    directory: Path, marks: Sequence[int], model: str = "2M", *, batch: int = BATCH
) -> None:
    """Write the model's configuration, the shards and the held-out text, the same every time.

    marks: steps of each worker after which its weights are kept. model: one of MODELS. batch:
    sequences of a worker's step.
    """
    directory.mkdir(parents=True, exist_ok=True)
    given = {"marks": list(marks), "batch": batch}
    (directory / WORK_FILE).write_text(json.dumps(given) + "\n")
    (directory / CONFIG_FILE).write_text(json.dumps(MODELS[model], indent=1) + "\n")
    documents = sorted(
        (hashlib.sha256(name.encode()).digest(), text) for name, text in named_documents()
    )
    total = sum(len(text) for _, text in documents)
    parts: list[list[str]] = [[] for _ in range(1 + WORKERS)]
    done = 0
    for _, text in documents:
        beyond = done / total - HELD_OUT_SHARE
        part = 0 if beyond < 0 else 1 + int(beyond / (1 - HELD_OUT_SHARE) * WORKERS)
        parts[part].append(text)
        done += len(text)
    (directory / HELD_OUT_FILE).write_text(SEPARATOR.join(parts[0]), encoding="utf-8")
    for index, texts in enumerate(parts[1:]):
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (directory / shard_name(index)).write_text("".join(lines), encoding="utf-8")


def read_marks(directory: Path) -> list[int]:
    """The marks that `prepare` was given."""
    return [int(mark) for mark in json.loads((directory / WORK_FILE).read_text())["marks"]]


def read_batch(directory: Path) -> int:
    """The sequences of a step that `prepare` was given."""
    return int(json.loads((directory / WORK_FILE).read_text())["batch"])


def first_seed(seed: int) -> int:
    """The seed of the first weights and of worker 0's batches; worker i has i more."""
    return seed * SEED_STRIDE


def first_model(directory: Path, seed: int) -> FlatModel:
    """The work's model with the weights that all workers of a run begin with."""
    config = json.loads((directory / CONFIG_FILE).read_text())
    return FlatModel(build_model(config, first_seed(seed)))


@dataclass(frozen=True, slots=True)
class Recipe:
    """What may differ from the common work's steps, by the names of Shoal's mesh parameters."""

    learning_rate: float = LEARNING_RATE
    # How many times AdamW's learning rate Muon's is, for the hidden matrices; 0: AdamW for all.
    muon_scale: float = 0.0
    # Tokens of all workers after which half a cosine has brought the rate down to a tenth.
    schedule_tokens: int = SCHEDULE_TOKENS

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "muon_scale=4,schedule_tokens=1638400"; "" is the common work as it is.

        Raises TypeError for a name that is no field, ValueError for what is no number.
        """
        given = dict(item.split("=", 1) for item in text.split(",") if item)
        kinds = {"learning_rate": float, "muon_scale": float, "schedule_tokens": int}
        return cls(**{name: kinds.get(name, str)(value) for name, value in given.items()})


class Worker:
    """Model, shard and optimiser of one worker; the same in every system."""

    def __init__(
        self, directory: Path, *, index: int, seed: int, out: Path, recipe: Recipe | None = None
    ) -> None:
        """directory: what `prepare` wrote. out: where the weights at the marks go."""
        torch.set_num_threads(1)
        self.model = first_model(directory, seed)
        self.corpus = load(str(directory / shard_name(index)), ByteTokenizer())
        self.steps = 0
        self._marks = read_marks(directory)
        self.batch = read_batch(directory)
        self.computing_seconds = 0.0
        self._seed = first_seed(seed) + index
        self._out = out / f"worker{index}"
        self._begun_at = 0
        self._recipe = recipe or Recipe()
        self.trainer = self._new_trainer(WARMUP_STEPS)

    @property
    def step_tokens(self) -> int:
        """How many tokens one step trains on."""
        return self.batch * SEQUENCE

    def forget_moments(self) -> None:
        """Begin again with a new optimiser at the full rate, as stateless workers do each round."""
        self._begun_at = self.steps
        self.trainer = self._new_trainer(0)

    def _new_trainer(self, warmup_steps: int) -> LocalTrainer:
        schedule = Schedule(
            learning_rate=self._recipe.learning_rate,
            warmup_tokens=warmup_steps * self.step_tokens,
            schedule_tokens=self._recipe.schedule_tokens // WORKERS,
        )
        return LocalTrainer(
            self.model,
            self.corpus,
            schedule,
            batch=self.batch,
            sequence=SEQUENCE,
            weight_decay=WEIGHT_DECAY,
            muon_scale=self._recipe.muon_scale,
            seed=self._seed,
        )

    def step(self) -> float:
        """Make one step; returns the loss of its batch before it, in nats per token."""
        if not self.steps:
            self._out.mkdir(parents=True, exist_ok=True)
            (self._out / BEGAN).touch()
        started = time.perf_counter()
        round, step = divmod(self.steps, ROUND_STEPS)
        tokens = (self.steps - self._begun_at) * self.step_tokens
        loss = self.trainer.step(round=1 + round, step=step, tokens=tokens)
        self.steps += 1
        self.computing_seconds += time.perf_counter() - started
        return float(loss)

    def keep_at_mark(self) -> None:
        """Write the weights if this is a mark."""
        if self.steps in self._marks:
            keep_weights(self._out / f"{self.steps}.f32", self.model, self.model.flat)


def keep_weights(path: Path, model: FlatModel, weights: torch.Tensor) -> None:
    """Write `weights` [P]; a file is whole when it has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    write_weights(partial, model, weights)
    partial.rename(path)


def evaluate(directory: Path, files: Iterable[Path]) -> list[float]:
    """The loss of each file's weights on the held-out text, in nats per byte."""
    # Two threads wait for each other actively, which takes ages where others want the processors.
    torch.set_num_threads(1)
    model = first_model(directory, 0)
    text = (directory / HELD_OUT_FILE).read_bytes()
    held_out = np.frombuffer(text, dtype=np.uint8)
    return [
        held_out_loss(
            model,
            read_weights(path, model),
            held_out,
            batches=EVAL_BATCHES,
            batch=BATCH,
            sequence=SEQUENCE,
        )
        for path in files
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure files of weights."""
    parser = argparse.ArgumentParser(description="Measure weights on the common work's text.")
    parser.add_argument("command", choices=["evaluate"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    losses = evaluate(options.directory, options.files)
    print(json.dumps(dict(zip(map(str, options.files), losses, strict=True))))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
