"""What there is to tell of one run of a node, as rows: the store keeps them, trackers show them.

A row is made where its facts are (round.py, checkpointing.py, evaluation.py) and completed by the
recorder. Totals count from the start of the run, so a row that is left out later takes nothing with
it. Times are seconds since 1970 on this machine's clock; losses are nats per token, None where one
is not a number.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

# A round has six stages, a cut a few for each attempt at it; more than this are not kept.
STAGES_MAX = 16
# Any time that a calendar of this century has.
Time = Annotated[float, Field(ge=0, le=4e9)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Loss = Annotated[float, Field(allow_inf_nan=False)] | None


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a round or a cut: what, when it began, how long it took."""

    name: str
    began_s: Time
    seconds: Seconds


class Stages:
    """The stages of one round or cut so far; one that raises is none."""

    def __init__(self) -> None:
        self.done: list[Stage] = []

    def add(self, name: str, seconds: float) -> None:
        """A stage that has just ended."""
        if len(self.done) < STAGES_MAX:
            self.done.append(Stage(name, round(time.time() - seconds, 4), round(seconds, 4)))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """The work below is one stage."""
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBegan:
    """The first row: who runs what with which settings, and which run was the last one here."""

    run: str
    previous: str
    time_s: Time
    node: str
    node_id: str
    mesh_id: str
    height: int
    parameters: int
    versions: dict[str, str]
    machine: dict[str, str]
    # By dotted name, like {"train.batch": 8}; keys and invitations are files, not settings.
    settings: dict[str, Any]
    mesh: dict[str, float]
    kind: Literal["run"] = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundDone:
    """A round: `round` is the number of its delta, which has no bytes where none was made."""

    time_s: Time
    round: int
    height: int
    loss: Loss
    steps: int
    tokens: int
    tokens_total: int
    seconds: Seconds
    delta_bytes: int
    stages: list[Stage]
    # Completed by the recorder: by kind, since the start.
    sent_bytes: dict[str, int] = field(default_factory=dict)
    deltas_made: int = 0
    device: str = ""
    kind: Literal["round"] = "round"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDone:
    """A certified height that this node has rebuilt and written; signers by 16 digits of their id.

    tokens: that the model has learned from, of all members.
    """

    time_s: Time
    height: int
    round: int
    root: str
    signers: list[str]
    view: int
    deltas: int
    delta_bytes: int
    tokens: int
    stages: list[Stage]
    kind: Literal["checkpoint"] = "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A checkpoint's loss on this node's held-out text, which is known some time after it."""

    time_s: Time
    height: int
    held_out_loss: Loss
    kind: Literal["evaluation"] = "evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The last row; a run that was killed has none."""

    time_s: Time
    how: str
    kind: Literal["end"] = "end"


Row = RunBegan | RoundDone | CheckpointDone | Evaluated | RunEnded
_ROW: TypeAdapter[Row] = TypeAdapter(Annotated[Row, Field(discriminator="kind")])


def loss_or_none(value: float) -> float | None:
    """A loss as JSON can say it."""
    return round(value, 6) if math.isfinite(value) else None


def row_to_line(row: Row) -> bytes:
    """One line of JSON."""
    return _ROW.dump_json(row) + b"\n"


def row_from_line(line: bytes) -> Row:
    """Read such a line; raises ValueError for any other."""
    return _ROW.validate_json(line)
