"""One node's training, as the worker and the solo baseline both run it.

Three vectors of P values matter. `x`, the model's parameters, moves with every step. `base` is
where the others believe that this node stands. A round ends with the delta `base - x` (positive =
downhill), which the node sends; from then on the others know about it, so `base` becomes `x`.
A new starting point `w` moves both by the same amount: the progress made since, `x - base`, is
carried over, also in the middle of a round. The optimiser's moments stay through all of this.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch

from shoal.training.adapters import Lora, adapted_model, require_base
from shoal.training.data import Corpus, Source, load
from shoal.training.device import device_of_rank, pick_device
from shoal.training.documents import Tell
from shoal.training.errors import TrainingError
from shoal.training.evaluate import batch_losses, held_out_batches, held_out_loss
from shoal.training.installed_tasks import installed_task
from shoal.training.local_steps import LocalTrainer, Schedule
from shoal.training.model import FlatModel, build_model
from shoal.training.task_name import TaskName
from shoal.training.task_training import Examples, TaskModel
from shoal.training.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from shoal.training.group import Leader

PROCESSES_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """What a training process is told once, at its start."""

    model: dict[str, Any]
    data: str
    # AdamW's largest learning rate; tokens are counted over the whole mesh.
    learning_rate: float
    warmup_tokens: int
    schedule_tokens: int
    weight_decay: float = 0.1
    # How many times the learning rate Muon's is (optimiser.py); 0 is AdamW for everything.
    muon_scale: float = 0.0
    # Adapters to train instead of the model (adapters.py), and the directory of what they adapt.
    lora: dict[str, Any] | None = None
    base: str | None = None
    # The module:Class that a task may be imported by (installed_tasks.py).
    task: str | None = None
    # Directory for the tokens of files (token_files.py); None keeps them in memory.
    token_cache: str | None = None
    # Directory of a tokenizer; None is the built-in one.
    tokenizer: str | None = None
    device: str = "auto"
    threads: int = 1
    nice: int = 10
    seed: int = 0
    # Sequences per step, and tokens per sequence.
    batch: int = 8
    sequence: int = 128
    # Batches of held-out text per evaluation.
    eval_batches: int = 8
    # How many processes share each batch (group.py).
    processes: int = 1

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Check what came as JSON; raises TrainingError that names the first wrong key."""
        known = {field.name: field for field in fields(cls)}
        if unknown := sorted(values.keys() - known.keys()):
            raise TrainingError(f"there is no training setting {unknown[0]}")
        for name, field in known.items():
            if name not in values and field.default is MISSING:
                raise TrainingError(f"the training setting {name} is missing")
        config = cls(**values)
        config._check()
        return config

    @property
    def cache(self) -> Path | None:
        """`token_cache` as a path."""
        return None if self.token_cache is None else Path(self.token_cache)

    def _check(self) -> None:
        bounds: dict[str, tuple[type, float, float]] = {
            "learning_rate": (float, 0.0, 10.0),
            "weight_decay": (float, 0.0, 10.0),
            "muon_scale": (float, 0.0, 100.0),
            "warmup_tokens": (int, 0, 2**62),
            "schedule_tokens": (int, 1, 2**62),
            "threads": (int, 1, 1024),
            "nice": (int, 0, 19),
            "seed": (int, 0, 2**63 - 1),
            "batch": (int, 1, 65536),
            "sequence": (int, 1, 1 << 20),
            "eval_batches": (int, 1, 1 << 20),
            "processes": (int, 1, PROCESSES_MAX),
        }
        for name, (kind, low, high) in bounds.items():
            value = getattr(self, name)
            accepted = (int, float) if kind is float else int
            if isinstance(value, bool) or not isinstance(value, accepted):
                raise TrainingError(f"{name} must be a number, not {value!r}")
            if not low <= value <= high:
                raise TrainingError(f"{name} must be from {low} to {high}, not {value}")
        if not isinstance(self.model, dict):
            raise TrainingError("model must be a model configuration (a JSON object)")
        if self.batch % self.processes:
            raise TrainingError(
                f"a batch of {self.batch} cannot be shared equally by {self.processes} processes; "
                "make batch a multiple of processes"
            )
        for name in ("data", "device", "tokenizer", "base", "task", "token_cache"):
            value = getattr(self, name)
            optional = name not in ("data", "device")
            if not isinstance(value, str) and not (optional and value is None):
                raise TrainingError(f"{name} must be a string, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOrder:
    """Make `steps` AdamW steps; `tokens_done` and `tokens_per_step` are the whole mesh's.

    schedule: the learning rate's from this round on; None leaves it as it is.
    """

    round: int
    steps: int
    tokens_done: int
    tokens_per_step: int
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What a round gave, besides its delta."""

    round: int
    # Mean over the steps of the loss on the batch that each then learned from (nats per token).
    loss: float
    steps: int
    tokens: int
    seconds: float


class Material(NamedTuple):
    """What a session learns from. tokenizer: None where that is no text."""

    tokenizer: Tokenizer | None
    source: Source

    @property
    def shard_tokens(self) -> int:
        """How many tokens, or a task's examples, there are to train on."""
        return len(self.source.train)


def read_material(config: SessionConfig, tell: Tell | None = None) -> Material:
    """Read the tokenizer and the text, which needs no model; raises TrainingError.

    tell: told how far the reading of files is, where it takes long (documents.py).
    A base model or a task that is not the mesh's is found here too: before anybody hears of this
    node.
    """
    if TaskName.of(config.model) is not None:
        task = installed_task(config.model, config.task)
        return Material(None, Examples.read(task, config.data))
    if config.lora is not None:
        require_base(Lora.from_json(config.lora), config.base)
    tokenizer = load_tokenizer(None if config.tokenizer is None else Path(config.tokenizer))
    return Material(tokenizer, load(config.data, tokenizer, cache=config.cache, tell=tell))


def fresh_model(config: SessionConfig, seed: int, device: torch.device | None = None) -> FlatModel:
    """What is trained, with weights drawn from `seed`: a task's module, a language model, or its
    base with adapters.

    Raises TrainingError. The base is the one that `read_material` has checked.
    """
    if TaskName.of(config.model) is not None:
        return TaskModel(installed_task(config.model, config.task), seed, device)
    if config.lora is None:
        return FlatModel(build_model(config.model, seed), device)
    assert config.base is not None
    lora = Lora.from_json(config.lora)
    return FlatModel(adapted_model(config.model, lora, Path(config.base), seed), device)


class TrainingSession:
    """Model, data and optimiser of one node, and the two points x and base."""

    def __init__(
        self,
        config: SessionConfig,
        material: Material | None = None,
        clock: Callable[[], float] = time.perf_counter,
        *,
        rank: int = 0,
    ) -> None:
        """material: what `read_material` gave; read here where it is None. rank: of this process
        among those that share each batch."""
        self._config = config
        self._clock = clock
        self.tokenizer, self._source = material or read_material(config)
        device = config.device
        if config.processes > 1:
            device = device_of_rank(device, rank)
            if isinstance(self._source, Examples):
                self._source = replace(self._source, rank=rank, processes=config.processes)
        self.model = fresh_model(config, config.seed, pick_device(device))
        self._require_fit()
        # Dropout, where the model has any, draws from torch's own state.
        torch.manual_seed(config.seed + rank)
        self._trainer = LocalTrainer(
            self.model,
            self._source,
            Schedule(
                learning_rate=config.learning_rate,
                warmup_tokens=config.warmup_tokens,
                schedule_tokens=config.schedule_tokens,
            ),
            batch=config.batch,
            # A task's examples are as long as they are; each counts as one token.
            sequence=config.sequence if isinstance(self._source, Corpus) else 1,
            weight_decay=config.weight_decay,
            muon_scale=config.muon_scale,
            seed=config.seed,
        )
        self._base: torch.Tensor | None = None
        self._leader: Leader | None = None
        self._moved = False

    def lead(self, leader: "Leader") -> None:
        """Train with the ranks of `leader` from now on; raises TrainingError."""
        self._leader = leader
        self.train_with(leader.join(self.model))

    def train_with(self, loss: Callable[..., torch.Tensor]) -> None:
        """Learn from this loss, of which other processes have their share."""
        self._trainer.loss = loss

    def _require_fit(self) -> None:
        if not isinstance(self._source, Corpus):
            return
        context = self.model.context_length
        if context is not None and self._config.sequence > context:
            raise TrainingError(
                f"sequence is {self._config.sequence}, but the model can look at {context} tokens"
            )
        self._source.require(
            sequence=self._config.sequence, vocabulary_size=self.model.vocabulary_size
        )

    @property
    def parameters(self) -> int:
        """P: how many values a vector of weights has."""
        return self.model.size

    @property
    def step_tokens(self) -> int:
        """How many tokens, or a task's examples, one step trains on."""
        return self._trainer.step_tokens

    def read(self, source: str) -> Source:
        """Return another source, read as this session's own; raises TrainingError."""
        if isinstance(self._source, Examples):
            return Examples.read(self._source.task, source)
        assert self.tokenizer is not None
        return load(source, self.tokenizer, cache=self._config.cache)

    def rebase(self, weights: torch.Tensor, newer: Sequence[torch.Tensor] = ()) -> None:
        """Move to a new starting point: x becomes base' + (x - base), and base becomes base'.

        weights: float32 [P]. newer: deltas of rounds that have ended but that `weights` does not
        contain yet; base' is weights less these. The first call sets x = weights.
        """
        x = self.model.flat
        self._moved = True
        if self._base is None:
            x.copy_(weights)
            self._base = x.clone()
            return
        # In this order x is exactly `weights` where nothing has been learned since.
        x.sub_(self._base)
        self._base.copy_(weights)
        for delta in newer:
            self._base.sub_(delta.to(self._base.device))
        x.add_(self._base)

    def run_round(
        self, order: RoundOrder, delta: torch.Tensor, before_step: Callable[[], None]
    ) -> RoundReport:
        """Carry out one round and write base - x to `delta` (float32 [P], on any device).

        before_step: called at each step boundary; may call rebase. Raises TrainingError where the
        numbers have left the range of float32.
        """
        assert order.steps > 0, "a round has steps"
        if order.schedule is not None:
            self._trainer.schedule = order.schedule
        started = self._clock()
        total = torch.zeros((), device=self.model.device)
        for step in range(order.steps):
            before_step()
            assert self._base is not None, "a round needs a starting point: rebase first"
            tokens = order.tokens_done + step * order.tokens_per_step
            total += self._step_of_all(round=order.round, step=step, tokens=tokens)
        if self._leader is not None:
            total = self._leader.mean(total)
        assert self._base is not None
        # base is not needed any more, so the difference is taken in its place.
        self._base.sub_(self.model.flat)
        loss = float(total) / order.steps
        if not math.isfinite(loss) or not bool(torch.isfinite(self._base).all()):
            raise TrainingError(
                f"the loss of round {order.round} is not a finite number: training has diverged; "
                f"lower learning_rate (now {self._config.learning_rate:g}) and start again from "
                "the last checkpoint"
            )
        delta.copy_(self._base)
        self._base.copy_(self.model.flat)
        return RoundReport(
            round=order.round,
            loss=loss,
            steps=order.steps,
            tokens=order.steps * self._trainer.step_tokens,
            seconds=self._clock() - started,
        )

    def step(
        self, *, round: int, step: int, tokens: int, schedule: Mapping[str, Any]
    ) -> torch.Tensor:
        """Make one step as a further rank; returns its share of the loss, a scalar."""
        self._trainer.schedule = Schedule(**schedule)
        return self._trainer.step(round=round, step=step, tokens=tokens)

    def _step_of_all(self, **where: int) -> torch.Tensor:
        if self._leader is None:
            return self._trainer.step(**where)
        if self._moved:
            self._leader.share_weights(self.model.flat)
            self._moved = False
        with self._leader.step(**where, schedule=asdict(self._trainer.schedule)):
            return self._trainer.step(**where)

    def evaluate(self, weights: torch.Tensor, source: Source | None = None) -> dict[str, float]:
        """Return "loss" of `weights` [P] on what a source holds out, by default this node's own;
        beside it whatever else a task measures."""
        source = self._source if source is None else source
        size = {"batches": self._config.eval_batches, "batch": self._config.batch}
        if isinstance(source, Corpus):
            sequence, held_out = self._config.sequence, source.held_out
            loss = held_out_loss(self.model, weights, held_out, **size, sequence=sequence)
            return {"loss": loss}
        assert isinstance(source, Examples) and isinstance(self.model, TaskModel)
        with self.model.holding(weights), torch.no_grad():
            return self.model.measure(source, **size)

    def batch_losses(self, weights: torch.Tensor) -> list[float]:
        """Return the loss of `weights` [P] on each batch that this node holds out, where weights
        are compared in pairs; not a number, or infinite, where they are broken."""
        source = self._source
        size = {"batches": self._config.eval_batches, "batch": self._config.batch}
        if isinstance(source, Corpus):
            parts = held_out_batches(source.held_out, **size, sequence=self._config.sequence)
            return batch_losses(self.model, weights, parts)
        assert isinstance(source, Examples)
        return batch_losses(self.model, weights, source.to_measure(**size, model=self.model))
