"""What `shoal simulate` is asked to do, checked, and the strategy that it names."""

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.compression.layout import CHUNK
from shoal.gossip.attacks import ATTACKS
from shoal.gossip.parameters import genesis_parameters
from shoal.gossip.robust import PULLS, Pull, robust_pull
from shoal.gossip.schema import ModelSchema
from shoal.gossip.strategies.choco import Choco
from shoal.gossip.strategies.delta_log import DeltaLog
from shoal.gossip.strategies.diloco import Diloco
from shoal.gossip.strategies.dpsgd import Dpsgd
from shoal.gossip.strategies.gasloc import Gasloc
from shoal.gossip.strategies.noloco import Noloco
from shoal.gossip.strategies.strategy import AnyStrategy
from shoal.gossip.topology import GRAPHS
from shoal.node.errors import UserError

MIXING = ("choco", "gasloc", "dpsgd")
STRATEGIES = ("delta-log", *MIXING, "noloco", "diloco", "isolated")
# Absent attackers are what an attack is compared with: the honest alone, with the same texts.
ABSENT = "absent"
ATTACK_NAMES = ("none", ABSENT, *ATTACKS, "dissensus")
ROBUST = ("auto", "clip", "aligned", "trust", *PULLS)
PEERS_MAX = 1024
# Aggregate density of all members (algorithms.md 1.4), and how often each value can be said.
AGGREGATE_DENSITY = 0.5
DENSITY_TIMES_ROUNDS = 8
CHOCO_DENSITY = 1 / 8
FAST_TIMES = 4
# A cut of a log costs nothing; a model that neighbours agree on costs snapshots of whole models.
CUT_ROUNDS, SNAPSHOT_ROUNDS = 5, 20
# No clip at all, for comparison: above any norm that int32 increments allow.
UNLIMITED = 1e12

Members = list[tuple[bytes, int, int]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a simulated run depends on. density: of 1, None for the strategy's own rule;
    drop: share of transmissions lost; churn: of peers that leave each epoch, while those of the
    last one come back; stragglers: share of peers that are `slowdown` times slower; fast: of those
    that make FAST_TIMES as many steps in a round; attackers: how many of the peers lie;
    epoch_rounds: rounds between two cuts, and two graphs, None for the strategy's own."""

    strategy: str = "delta-log"
    peers: int = 16
    topology: str = "random-regular"
    degree: int = 4
    rounds: int = 50
    local_steps: int = 10
    density: float | None = None
    drop: float = 0.0
    churn: float = 0.0
    stragglers: float = 0.0
    slowdown: int = 5
    fast: float = 0.0
    normalise_steps: bool = False
    attack: str = "none"
    attackers: int = 0
    robust: str = "auto"
    seed: int = 0
    epoch_rounds: int | None = None
    hidden: int = 64
    batch: int = 4
    predicted: int = 32
    learning_rate: float = 8e-3
    gamma: float | None = None

    def check(self) -> None:
        """Raise UserError for what cannot be simulated."""
        self._require("strategy", STRATEGIES)
        self._require("topology", GRAPHS)
        self._require("attack", ATTACK_NAMES)
        self._require("robust", ROBUST)
        if not 2 <= self.peers <= PEERS_MAX:
            raise UserError(f"--peers {self.peers}: between 2 and {PEERS_MAX} can be simulated")
        if (self.attack == "none") != (self.attackers == 0):
            raise UserError("--attack and --attackers belong together: give both or none")
        if not 0 <= 2 * self.attackers < self.peers:
            raise UserError(f"--attackers {self.attackers}: fewer than half of the peers can lie")
        if self.degree % 2 or self.degree < 2:
            raise UserError(f"--degree {self.degree}: the graph is made of cycles, so give it even")
        if self.attack == "dissensus" and self.strategy not in MIXING:
            raise UserError(f"dissensus attacks neighbours, which {self.strategy} does not have")
        if self.normalise_steps and self.strategy != "delta-log":
            raise UserError(f"--normalise-steps: {self.strategy} counts no steps")
        fitting = self._robust_rules()
        if self.robust not in ("auto", "none", *fitting):
            known = ", ".join(fitting) or "no robust rule"
            raise UserError(f"--robust {self.robust}: {self.strategy} has {known}")

    def _require(self, name: str, known: tuple[str, ...]) -> None:
        if getattr(self, name) not in known:
            raise UserError(f"--{name} {getattr(self, name)}: one of {', '.join(known)}")

    def _robust_rules(self) -> tuple[str, ...]:
        if self.strategy == "delta-log":
            return ("clip", "aligned", "trust")
        return PULLS[1:] if self.strategy in MIXING else ()

    @property
    def rounds_per_epoch(self) -> int:
        """E."""
        usual = SNAPSHOT_ROUNDS if self.strategy in (*MIXING, "noloco") else CUT_ROUNDS
        return self.epoch_rounds or usual

    @property
    def kept_per_chunk(self) -> int:
        """Values kept of each chunk of 4096."""
        density = self.density
        if density is None and self.strategy == "choco":
            density = CHOCO_DENSITY
        elif density is None:
            fair = min(1 / 4, max(1 / 256, AGGREGATE_DENSITY / self.peers))
            density = max(fair, min(1 / 4, DENSITY_TIMES_ROUNDS / self.rounds))
        return min(CHUNK, max(1, round(density * CHUNK)))

    @property
    def pull(self) -> Pull:
        """How neighbours are listened to."""
        rule = "none" if self.robust == "auto" else self.robust
        return robust_pull(rule, liars=max(1, self.degree // 4))


def make_strategy(
    plan: Plan, schema: ModelSchema, members: Members, shares: Mapping[bytes, float]
) -> AnyStrategy:
    """The strategy that a plan names. members: as in genesis_parameters; shares: p_i."""
    if plan.strategy == "delta-log":
        clip_factor = UNLIMITED if plan.robust == "none" else 2.0
        first = genesis_parameters(
            members,
            schema,
            kept_per_chunk=plan.kept_per_chunk,
            alpha=1.0,
            largest_value=clip_factor * plan.local_steps * plan.learning_rate,
            steps=plan.local_steps if plan.normalise_steps else 0,
        )
        return DeltaLog(
            schema,
            first,
            clip_factor=clip_factor,
            # What `trust = false` does to a mesh is "clip".
            aligned=plan.robust in ("auto", "aligned"),
            closed=plan.robust == "trust",
            normalise_steps=plan.normalise_steps,
        )
    if plan.strategy == "choco":
        return Choco(schema, plan.kept_per_chunk, gamma=plan.gamma, pull=plan.pull)
    if plan.strategy == "diloco":
        return Diloco(shares=shares)
    if plan.strategy == "noloco":
        return Noloco()
    return Gasloc(pull=plan.pull) if plan.strategy == "gasloc" else Dpsgd(pull=plan.pull)
