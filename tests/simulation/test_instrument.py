"""The simulator itself: what it is meant to do to a cluster really happens, and is noticed."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from shoal.consensus import quorum, validators
from tests.simulation.invariants import Violation
from tests.simulation.mutants import MUTANTS, hunt
from tests.simulation.mutation import Patch
from tests.simulation.network import Network
from tests.simulation.plan import BEHAVIOURS, Behaviour, Plan, draw_plan
from tests.simulation.runner import failure_of, run_all, share_out
from tests.simulation.shrink import shrink, simpler
from tests.simulation.world import simulate

CALM: Plan = replace(
    draw_plan("heal", 1),
    validators=4,
    byzantine=(),
    rotten=0,
    real_signatures=False,
    chaos_ms=4_000,
    loss=0.0,
    kind_loss=(),
    duplication=0.0,
    reordering=0.0,
    slow_tail=0.0,
    partition_every_ms=0,
    clog_every_ms=0,
    clock_drift_ppm=0,
    clock_jump_every_ms=0,
    crash_rate=0.0,
    power_cuts=0,
    disk_error_rate=0.0,
    operations=3,
    burst=0,
    spares=0,
    changes=0,
)


CALM_FIELDS: dict[str, object] = {name: getattr(CALM, name) for name in Plan.__dataclass_fields__}


def counts_of(plan: Plan) -> dict[str, int]:
    return dict(simulate(plan).counts)


def test_a_calm_plan_has_no_trouble_in_it() -> None:
    outcome = simulate(CALM)
    assert outcome.counts == ()
    assert outcome.views == 0 and outcome.heights >= 1


@pytest.mark.parametrize(
    ("trouble", "change"),
    [
        ("lost", {"loss": 0.1}),
        ("lost", {"kind_loss": ((3, 0.9),)}),
        ("doubled", {"duplication": 0.3}),
        ("reordered", {"reordering": 0.3}),
        ("blocked", {"partition_every_ms": 500}),
        ("one-way", {"partition_every_ms": 300}),
        ("held", {"clog_every_ms": 500}),
        ("clock jumps", {"clock_jump_every_ms": 500}),
        ("clock stalls", {"clock_jump_every_ms": 500}),
        ("crashes", {"crash_rate": 0.05}),
        ("crashes", {"power_cuts": 1}),
        ("interrupted", {"crash_rate": 0.2}),
        ("disk errors", {"disk_error_rate": 0.1}),
        ("buried", {"rotten": 1}),
    ],
)
def test_each_trouble_happens_when_it_is_switched_on(
    trouble: str, change: dict[str, object]
) -> None:
    values: dict[str, object] = {**CALM_FIELDS, **change}
    plan = Plan(**values)  # type: ignore[arg-type]
    seen: Counter[str] = Counter()
    for seed in range(8):
        seen.update(counts_of(replace(plan, seed=seed)))
    assert seen[trouble] > 0


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_each_liar_does_what_it_is_there_for(behaviour: Behaviour) -> None:
    seen: Counter[str] = Counter()
    for seed in range(12):
        plan = replace(
            CALM,
            seed=seed,
            byzantine=(behaviour,),
            partition_every_ms=1_500,
            loss=0.1,
            operations=8,
        )
        seen.update(counts_of(plan))
    assert seen[behaviour] > 0
    others = set(BEHAVIOURS) - {behaviour}
    assert not others & set(seen), "nobody else lied"


def test_the_harmless_liars_are_not_accused_and_the_equivocator_is() -> None:
    evidence: Counter[str] = Counter()
    for behaviour in ("selective", "withhold", "slow-primary", "equivocate"):
        for seed in range(4):
            plan = replace(CALM, seed=seed, byzantine=(behaviour,), operations=8)
            evidence[behaviour] += counts_of(plan).get("evidence", 0)
    assert evidence["equivocate"] > 0
    assert evidence.total() == evidence["equivocate"]


def test_a_node_with_damaged_rows_is_out_and_the_others_go_on() -> None:
    outcomes = [simulate(replace(CALM, seed=seed, rotten=1)) for seed in range(6)]
    assert all(outcome.heights >= 1 for outcome in outcomes)
    # Whose bit was to flip before there was any row is out as well, but not for its rows.
    assert sum(dict(outcome.counts).get("buried", 0) for outcome in outcomes) >= 3


def test_core_mode_leaves_a_quorum_and_heal_mode_everybody() -> None:
    core = simulate(replace(CALM, mode="core", validators=6))
    heal = simulate(replace(CALM, validators=6))
    assert dict(core.counts)["crashes"] == 2, "6 validators, of which 4 are a quorum"
    assert heal.counts == ()


def test_a_clogged_link_holds_back_and_then_delivers_everything() -> None:
    plan = replace(CALM, clog_every_ms=1_000, delay_ms=(1, 2))
    network = Network(plan, random.Random(1))
    while not network.held:
        network.clog(0)
        late = [network.arrivals(5, a, b, 2) for a in range(4) for b in range(4)]
    assert all(len(arrivals) == 1 for arrivals in late), "nothing is lost"
    assert max(arrivals[0] for arrivals in late) >= 500
    network.heal()
    assert all(network.arrivals(5, a, b, 2)[0] < 10 for a in range(4) for b in range(4))


def test_lying_disks_are_noticed() -> None:
    lossy = replace(CALM, mode="core", planted=("lost-writes",), crash_rate=0.05, power_cuts=1)
    caught = [failure_of(replace(lossy, seed=seed)) for seed in range(20)]
    assert any(caught)
    honest = [failure_of(replace(lossy, seed=seed, planted=())) for seed in range(20)]
    assert not any(honest)


def test_the_shrinker_finds_what_the_failure_needs_and_nothing_else() -> None:
    full = replace(draw_plan("heal", 3), validators=7, byzantine=("silent", "mutate"), rotten=0)
    full = replace(full, crash_rate=0.02, loss=0.3, kind_loss=((2, 0.5), (3, 0.8)), burst=9)

    def fails(plan: Plan) -> str | None:
        return "planted" if plan.loss > 0.2 and "mutate" in plan.byzantine else None

    smallest, tried = shrink(full, fails)
    assert fails(smallest) and 0 < tried <= 400
    assert smallest.byzantine == ("mutate",) and smallest.validators == 4
    assert smallest.loss == full.loss, "half of it would not fail any more"
    for name in ("crash_rate", "kind_loss", "burst", "power_cuts", "partition_every_ms"):
        assert not getattr(smallest, name), name
    assert all(fails(plan) is None for plan in simpler(smallest))


def test_the_shrinker_shrinks_a_real_failure() -> None:
    plan = replace(
        CALM,
        mode="core",
        planted=("lost-writes",),
        crash_rate=0.05,
        power_cuts=2,
        duplication=0.3,
        clock_drift_ppm=200,
        operations=6,
    )
    failing = next(p for s in range(50) if failure_of(p := replace(plan, seed=s)) is not None)
    smallest, _ = shrink(failing, failure_of, attempts=60)
    assert failure_of(smallest) is not None
    assert len(smallest.to_json()) < len(failing.to_json())
    assert Plan.from_json(smallest.to_json()) == smallest


def test_a_failure_says_how_to_repeat_it() -> None:
    plan = replace(CALM, mode="core", planted=("lost-writes",), crash_rate=0.1, power_cuts=2)
    failing = next(p for s in range(50) if failure_of(p := replace(plan, seed=s)) is not None)
    with pytest.raises(Violation) as caught:
        simulate(failing)
    line = str(caught.value).split("--plan '")[1].rstrip("'")
    assert Plan.from_json(line) == failing
    assert failure_of(Plan.from_json(line)) == str(caught.value).split("\n")[0]


def test_the_number_of_processes_changes_nothing() -> None:
    one, two = (run_all(share_out("all", 12), 1, jobs) for jobs in (1, 2))
    assert [(t.mode, t.schedules, t.events) for t in one] == [
        (t.mode, t.schedules, t.events) for t in two
    ]


@pytest.mark.parametrize("name", ["votes not persisted", "no f+1 join", "quorum 2f+1 (n=6)"])
def test_a_mutated_core_is_caught(name: str) -> None:
    verdict = hunt(name, 30)
    assert verdict.cause is not None and verdict.without is None and verdict.caught


def test_there_are_enough_mutants_and_each_has_its_own_name() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 25


def test_mutating_what_does_not_exist_fails() -> None:
    with pytest.raises(AssertionError, match="no such_thing to mutate"):
        Patch().set(quorum, "such_thing", None)


def test_a_mutation_is_taken_out_again() -> None:
    for mutant in MUTANTS:
        patch = Patch()
        mutant.apply(patch)
        patch.undo()
    assert quorum.quorum(6) == 4 and vars(validators)["quorum"] is quorum.quorum
