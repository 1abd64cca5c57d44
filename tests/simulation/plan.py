"""One schedule's configuration, drawn from its seed (swarm testing).

Every schedule switches each kind of trouble on or off by itself and draws its strength, because
a bug often needs one kind without the others. A plan prints as the dataclass that it is, and
(mode, seed) is all that is needed to run it again.
"""

import random
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["heal", "core", "slow"]
MODES: tuple[Mode, ...] = get_args(Mode)
Behaviour = Literal["equivocate", "silent", "mutate"]
BEHAVIOURS: tuple[Behaviour, ...] = get_args(Behaviour)

TIMEOUT_MS = 2_000
SIZES = (1, 2, 3, 4, 4, 4, 4, 5, 6, 6, 7, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Times are virtual milliseconds; rates are probabilities per message or per step."""

    mode: Mode
    seed: int
    validators: int
    byzantine: tuple[Behaviour, ...]
    real_signatures: bool
    chaos_ms: int
    loss: float
    duplication: float
    delay_ms: tuple[int, int]
    slow_tail: float
    partition_every_ms: int
    crash_rate: float
    power_cuts: int
    operations: int
    burst: int
    stability_interval: int
    retained: int

    def command(self) -> str:
        """The line that runs this schedule again."""
        return f"python -m tests.simulation --mode {self.mode} --seed {self.seed} --schedules 1"


def draw_plan(mode: Mode, seed: int) -> Plan:
    """The plan of this seed, the same on every machine."""
    rng = random.Random(f"plan/{mode}/{seed}")
    validators = rng.choice(SIZES)
    liars = rng.randint(0, (validators - 1) // 3) if rng.random() < 0.5 else 0
    slow = mode == "slow"
    low = rng.randint(TIMEOUT_MS, 2 * TIMEOUT_MS) if slow else rng.randint(1, 20)
    interval = rng.choice((2, 4, 4))
    return Plan(
        mode=mode,
        seed=seed,
        validators=validators,
        byzantine=tuple(rng.choice(BEHAVIOURS) for _ in range(liars)),
        real_signatures=rng.random() < 0.05,
        chaos_ms=0 if slow else rng.randint(2_000, 25_000),
        loss=0.0 if slow else rng.choice((0.0, 0.02, 0.1, 0.3)),
        duplication=rng.choice((0.0, 0.05, 0.3)),
        delay_ms=(low, low + (TIMEOUT_MS if slow else rng.choice((1, 30, 300)))),
        slow_tail=0.0 if slow else rng.choice((0.0, 0.0, 0.02)),
        partition_every_ms=0 if slow else rng.choice((0, 0, 3_000, 8_000)),
        crash_rate=rng.choice((0.0, 0.0, 0.002, 0.02)) if not slow else 0.0,
        power_cuts=0 if slow else rng.choice((0, 0, 1, 2)),
        operations=rng.randint(1, 3 if slow else 8),
        # More operations at the end than the window holds: a watermark that is stuck shows.
        burst=0 if slow else rng.choice((0, 2 * interval + 1)),
        stability_interval=interval,
        retained=rng.choice((0, 4, 32)),
    )
