"""The one dial as a person turns it: bytes per parameter and round, or the speed of a link.

A link's speed becomes bytes per parameter by how long a round's steps take on this machine:

    budget = LINK_SHARE * speed / 8 * (steps * seconds per step) / parameters

where steps are those of a round, or USUAL_STEPS where the budget will say how many a round has.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from shoal.gossip.density import LEVELS, budget_for
from shoal.node.config import TrainSettings
from shoal.node.errors import UserError
from shoal.node.founding import Start
from shoal.node.parameters import USUAL_STEPS, MeshParameters
from shoal.node.progress import tell
from shoal.training.data import Corpus
from shoal.training.errors import TrainingError
from shoal.training.local_steps import LocalTrainer, Schedule

# Half of a link: votes, checkpoints and whatever else the line is for need room, and a burst that
# takes twice as long as the steps it follows would never be caught up with.
LINK_SHARE = 0.5
WARM_STEPS = 2
TIMED_STEPS = 5
_SPEED = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([kMG])bit(?:/s)?")
_BITS = {"k": 1e3, "M": 1e6, "G": 1e9}


# What AdamW learns in so many steps Muon learns in one, more or less: 1.3 to 1.4 times the steps in
# three systems (docs/adr/0031).
MUON_WORTH = 1.4


@dataclass(frozen=True, slots=True)
class Work:
    """What a round is made of on this machine."""

    parameters: int
    step_seconds: float


def with_budget(
    mesh: MeshParameters,
    text: str,
    members: int,
    measure: Callable[[float], Work],
    *,
    choose_optimiser: bool = False,
) -> MeshParameters:
    """`mesh` with the budget that `text` says: "0.06", or "20Mbit" of every member's uplink.

    measure: the work with that muon_scale, asked only for a link's speed. choose_optimiser: then
    also whether Muon's steps are worth what they take. Raises UserError, one line.
    """
    if speed := _SPEED.fullmatch(text.strip()):
        work = measure(mesh.muon_scale)
        if choose_optimiser and mesh.muon_scale:
            plain = measure(0.0)
            if work.step_seconds > MUON_WORTH * plain.step_seconds:
                mesh, work = replace(mesh, muon_scale=0.0), plain
        bytes_per_second = LINK_SHARE * float(speed[1]) * _BITS[speed[2]] / 8
        seconds = (mesh.local_steps or USUAL_STEPS) * work.step_seconds
        budget = bytes_per_second * seconds / work.parameters
    else:
        budget = _number(text)
    after = replace(mesh, budget=budget)
    least, rounds = budget_for(LEVELS[0][0], members), after.worked_out(members)
    if rounds.budget < least:
        longer = "local_steps larger ([mesh] in a preset), or " if mesh.local_steps else ""
        raise UserError(
            f"--budget {text}: {rounds.budget:.2g} bytes per parameter and round of "
            f"{rounds.local_steps} steps, and with {members} members a delta takes {least:.2g} at "
            f"least; make {longer}the model smaller"
        )
    if problems := after.problems():
        raise UserError(f"--budget {text}: {problems[0]}")
    return after


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"--budget {text}: write bytes per parameter and round, like 0.06, or the speed that "
            "each member can send with, like 20Mbit"
        ) from None


def meaning(mesh: MeshParameters, members: int, parameters: int) -> str:
    """What a budget comes to, for a person."""
    rounds = mesh.worked_out(members)
    kept = rounds.kept_per_chunk(members)
    sent = parameters * budget_for(kept, members)
    return (
        f"{kept} of each 4096 values are said every {rounds.local_steps} steps; each of {members} "
        f"members sends about {sent / 1e6:.2g} MB a round"
        + ("" if mesh.muon_scale else "; AdamW trains all of it")
    )


def measure_work(
    start: Callable[[], Start], source: str, settings: TrainSettings, muon_scale: float
) -> Work:
    """Time a few steps of this model on this machine as a node with these settings makes them.

    Raises UserError where the model or the text cannot be used.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        tell("timing steps, for the budget")
        begin = start()
        model, data = begin.model(seed=0), begin.read(source)
        if isinstance(data, Corpus):
            data.require(sequence=settings.sequence, vocabulary_size=model.vocabulary_size)
        trainer = LocalTrainer(
            model,
            data,
            Schedule(learning_rate=1e-4, warmup_tokens=1, schedule_tokens=2),
            batch=settings.batch,
            sequence=settings.sequence,
            weight_decay=0.0,
            muon_scale=muon_scale,
            seed=0,
        )
        for step in range(WARM_STEPS):
            trainer.step(round=0, step=step, tokens=0)
        began = time.perf_counter()
        for step in range(TIMED_STEPS):
            trainer.step(round=1, step=step, tokens=0)
        return Work(model.size, (time.perf_counter() - began) / TIMED_STEPS)
    except TrainingError as error:
        raise UserError(str(error)) from None
    finally:
        torch.set_num_threads(threads)
