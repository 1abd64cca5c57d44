"""How often a node stops training to see how good the committed model is."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.node.evaluation import EVALUATION_REST, Evaluation
from shoal.node.round import RoundFacts
from shoal.node.trainer import Evaluated


class Trainer:
    """Measures whatever it is given, and says that it took so long."""

    ready = True

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.measured: list[str] = []

    def evaluation_slot(self) -> None:
        """Nowhere: the model below does not write."""

    async def evaluate(self, tag: str) -> Evaluated:
        """Remember what was asked for."""
        self.measured.append(tag)
        return Evaluated({"loss": 2.5}, self.seconds)


class Model(SimpleNamespace):
    """A committed model of some height."""

    async def compute(self, work: Callable[[], Any]) -> Any:
        """At once."""
        return work()


def commit(model: Model, height: int) -> None:
    """The next checkpoint is there."""
    model.height = height
    model.committed = SimpleNamespace(to_weights=lambda out: None)


async def measured_heights(seconds: float, *, pause: float, state: str) -> list[str]:
    """Which of three checkpoints, `pause` seconds apart, are measured, where one takes so long."""
    facts, model, trainer = RoundFacts(state=state), Model(), Trainer(seconds)
    evaluation = Evaluation(model, lambda: facts, lambda row: None)  # type: ignore[arg-type]
    for height in (1, 2, 3):
        commit(model, height)
        evaluation.soon(trainer)  # type: ignore[arg-type]
        await asyncio.sleep(pause)
    await evaluation.close()
    assert facts.evaluations == {int(tag): 2.5 for tag in trainer.measured}
    return trainer.measured


PAUSE = 0.05


@pytest.mark.parametrize(
    ("seconds", "state", "expected"),
    [
        # As long as the pauses last, or longer: the next ones go without.
        (10 * PAUSE / EVALUATION_REST, "training", ["1"]),
        # So quick that nobody notices: every one.
        (0.0, "training", ["1", "2", "3"]),
        # Nothing is kept from training: every one, and so the last.
        (10 * PAUSE / EVALUATION_REST, "finished", ["1", "2", "3"]),
    ],
)
def test_measuring_takes_a_fiftieth_of_the_training_time_at_most(
    seconds: float, state: str, expected: list[str]
) -> None:
    assert asyncio.run(measured_heights(seconds, pause=PAUSE, state=state)) == expected
