"""One schedule's configuration, drawn from its seed (swarm testing).

Every schedule switches each kind of trouble on or off by itself and draws its strength, because
a bug often needs one kind without the others. A plan prints as the JSON line that runs it again,
so a plan that the shrinker made, which no seed draws, can be repeated like any other.
"""

import json
import random
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, get_args

Mode = Literal["heal", "core", "slow"]
MODES: tuple[Mode, ...] = get_args(Mode)
Behaviour = Literal[
    "equivocate",
    "silent",
    "mutate",
    "twins",
    "slow-primary",
    "selective",
    "withhold",
    "stale",
    "newview",
    "forge",
    "censor",
    "rewrite",
]
BEHAVIOURS: tuple[Behaviour, ...] = get_args(Behaviour)
# Lies of the disk that break the driver's promise; only ever planted, never drawn.
Planted = Literal["lost-writes", "torn-writes"]

TIMEOUT_MS = 2_000
SIZES = (1, 2, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 6, 6, 6, 7, 7, 10)
# Message kinds by their first byte, which links may be made to lose more of than of others.
LOSSY_KINDS = (1, 2, 3, 4, 5, 7, 16, 17, 18, 19, 21, 22)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Times are virtual milliseconds; rates are probabilities per message or per step."""

    mode: Mode
    seed: int
    validators: int
    byzantine: tuple[Behaviour, ...]
    # Whether the liars take part in what comes after the chaos of core mode.
    liars_stay: bool
    # Disks in which a bit flips: their nodes must notice it and never vote again.
    rotten: int
    real_signatures: bool
    chaos_ms: int
    loss: float
    kind_loss: tuple[tuple[int, float], ...]
    duplication: float
    reordering: float
    delay_ms: tuple[int, int]
    slow_tail: float
    partition_every_ms: int
    clog_every_ms: int
    clock_drift_ppm: int
    clock_jump_every_ms: int
    crash_rate: float
    power_cuts: int
    disk_error_rate: float
    operations: int
    burst: int
    stability_interval: int
    retained: int
    # Members that only follow at first, and how often somebody wants another validator set.
    spares: int = 0
    changes: int = 0
    planted: tuple[Planted, ...] = ()

    @property
    def nodes(self) -> int:
        """Everybody that takes part, voting or not."""
        return self.validators + self.spares

    def to_json(self) -> str:
        """One line; from_json is the inverse."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "Plan":
        """The plan of such a line; raises ValueError for one with other fields."""
        values: dict[str, Any] = json.loads(line)
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not needed <= set(values) <= known:
            raise ValueError(f"a plan has the fields {sorted(known)}")
        for name, value in values.items():
            if isinstance(value, list):
                pieces = [tuple(piece) if isinstance(piece, list) else piece for piece in value]
                values[name] = tuple(pieces)
        return cls(**values)

    def command(self) -> str:
        """The line that runs this schedule again."""
        return f"python -m tests.simulation --plan '{self.to_json()}'"


def draw_plan(mode: Mode, seed: int) -> Plan:
    """The plan of this seed, the same on every machine."""
    rng = random.Random(f"plan/{mode}/{seed}")
    slow = mode == "slow"
    validators = rng.choice(SIZES)
    faulty = rng.randint(0, (validators - 1) // 3) if rng.random() < 0.6 else 0
    rotten = sum(rng.random() < 0.15 for _ in range(faulty)) if not slow else 0
    low = rng.randint(TIMEOUT_MS, 2 * TIMEOUT_MS) if slow else rng.randint(1, 20)
    interval = rng.choice((2, 4, 4, 8))

    def chaos(*strengths: int) -> int:
        """One of these in the middle of chaos, and nothing where links are only slow."""
        return 0 if slow else rng.choice(strengths)

    def rate(*strengths: float) -> float:
        return 0.0 if slow else rng.choice(strengths)

    return Plan(
        mode=mode,
        seed=seed,
        validators=validators,
        byzantine=tuple(rng.choice(BEHAVIOURS) for _ in range(faulty - rotten)),
        liars_stay=rng.random() < 0.5,
        rotten=rotten,
        real_signatures=rng.random() < 0.05,
        chaos_ms=_draw_chaos_ms(rng) if not slow else 0,
        loss=rate(0.0, 0.02, 0.1, 0.3),
        kind_loss=_draw_kind_loss(rng) if not slow and rng.random() < 0.4 else (),
        duplication=rng.choice((0.0, 0.05, 0.3)),
        reordering=rate(0.0, 0.0, 0.1, 0.3),
        delay_ms=(low, low + (TIMEOUT_MS if slow else rng.choice((1, 30, 300)))),
        slow_tail=rate(0.0, 0.0, 0.02),
        partition_every_ms=chaos(0, 0, 3_000, 8_000),
        clog_every_ms=chaos(0, 0, 0, 2_000),
        clock_drift_ppm=rng.choice((0, 200, 50_000)),
        clock_jump_every_ms=chaos(0, 0, 0, 4_000),
        crash_rate=rate(0.0, 0.0, 0.005, 0.05),
        power_cuts=chaos(0, 0, 1, 2),
        disk_error_rate=rate(0.0, 0.0, 0.0, 0.005, 0.02),
        operations=rng.randint(1, 3 if slow else 8),
        # More operations at the end than the window holds: a watermark that is stuck shows.
        burst=chaos(0, 0, 2 * interval + 1),
        stability_interval=interval,
        retained=rng.choice((0, 4, 32)),
        # A set that may grow needs somebody to grow by.
        spares=rng.choice((0, 1, 2, 2)),
        changes=chaos(0, 1, 3, 5),
    )


def _draw_chaos_ms(rng: random.Random) -> int:
    """Mostly short, for what happens in the first views; sometimes long, for what comes late."""
    return rng.randint(6_000, 20_000) if rng.random() < 0.25 else rng.randint(1_000, 6_000)


def _draw_kind_loss(rng: random.Random) -> tuple[tuple[int, float], ...]:
    """Some kinds of message get lost far more than others: it leaves slots half prepared."""
    kinds = sorted(rng.sample(LOSSY_KINDS, rng.randint(1, 3)))
    return tuple((kind, rng.choice((0.5, 0.8, 0.95))) for kind in kinds)
