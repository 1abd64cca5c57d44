"""Many peers in one process: strategies learn together, trouble is survived, anchors are equal."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shoal.gossip.alignment import FLOOR_PERMILLE, FULL_PERMILLE
from shoal.gossip.parameters import EpochParameters
from shoal.gossip.strategies.delta_log import DeltaLog, LogState
from shoal.gossip.strategies.dpsgd import Dpsgd, MixingState
from shoal.node.cli import main
from shoal.node.simulate import Measured, World, read_texts
from shoal.node.simulate_cuts import AnchorsDiffer
from shoal.node.simulate_plan import Plan
from tests.gossip.builders import hashed_delta

PLAN = Plan(peers=8, rounds=20, local_steps=10, hidden=24, batch=2)
# How far below isolated training each must end, in nats, on this little work.
GAINS = {
    "delta-log": 0.10,
    "choco": 0.06,
    "gasloc": 0.20,
    "noloco": 0.05,
    "diloco": 0.09,
    "dpsgd": 0.02,
}
TOGETHER = 0.25
NEIGHBOURLY = ("choco", "gasloc", "noloco", "dpsgd")


def play(plan: Plan) -> tuple[Measured, World]:
    world = World(plan)
    for measured in world.run():
        last = measured
    return last, world


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small only wait for each other on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def isolated() -> float:
    last, _ = play(replace(PLAN, strategy="isolated"))
    assert last.bytes_per_peer == 0
    assert last.consensus_relative > TOGETHER
    return last.loss_individual


def assert_learns_together(last: Measured, isolated: float, gain: float) -> None:
    assert last.loss_individual < isolated - gain
    assert last.consensus_relative < TOGETHER


@pytest.mark.parametrize("strategy", GAINS)
def test_every_strategy_beats_isolated_training(strategy: str, isolated: float) -> None:
    last, world = play(replace(PLAN, strategy=strategy))
    assert_learns_together(last, isolated, GAINS[strategy])
    assert world.cuts.checked == {"delta-log": 4, "diloco": 0}.get(strategy, 1)
    if world.loss_committed is not None:
        assert world.loss_committed == pytest.approx(last.loss_mean, abs=0.02)


def test_choco_over_the_cliff_does_not(isolated: float) -> None:
    last, _ = play(replace(PLAN, strategy="choco", density=1 / 16, gamma=1.5))
    with pytest.raises(AssertionError):
        assert_learns_together(last, isolated, GAINS["choco"])


@pytest.mark.parametrize("strategy", ["delta-log", *NEIGHBOURLY])
def test_lost_messages_and_churn_are_survived(strategy: str, isolated: float) -> None:
    """At every cut all members have one root, those that came back as well."""
    last, world = play(replace(PLAN, strategy=strategy, drop=0.3, churn=0.25, epoch_rounds=5))
    assert last.loss_individual < isolated
    assert last.peers == 6
    assert world.cuts.checked == 4
    assert world.loss_committed is not None and world.loss_committed < isolated


class OneGarbageSnapshot(World):
    """The first peer trains like everybody and lies when it comes to a model for all."""

    def _false_models(self, models: dict[bytes, torch.Tensor]) -> dict[bytes, torch.Tensor]:
        self.honest = torch.stack([models[me] for me in self.ids[1:]])
        return {self.ids[0]: torch.randn(self.honest.shape[1]) * 3.0}


@pytest.mark.parametrize("strategy", NEIGHBOURLY)
def test_one_liar_of_eight_moves_the_agreed_model_nowhere_that_no_honest_one_is(
    strategy: str, isolated: float
) -> None:
    world = OneGarbageSnapshot(replace(PLAN, strategy=strategy, epoch_rounds=5))
    for measured in world.run():
        last = measured
    assert world.cuts.checked == 4 and world.cuts.committed is not None
    agreed, honest = world.cuts.committed.to_weights(), world.honest
    assert (agreed >= honest.amin(dim=0) - 1e-7).all() and (agreed <= honest.amax(0) + 1e-7).all()
    spread = (honest - honest.mean(dim=0)).norm(dim=1).max()
    assert (agreed - honest.mean(dim=0)).norm() < spread
    assert last.loss_individual < isolated
    assert world.loss_committed == pytest.approx(last.loss_mean, abs=0.03)


def test_snapshots_are_paid_for() -> None:
    """Six of eight, four bytes a parameter, to seven others, once in so many rounds."""
    plan = replace(PLAN, strategy="dpsgd", rounds=4)
    sent = []
    for rounds in (100, 4, 2):
        _, world = play(replace(plan, epoch_rounds=rounds))
        sent.append(world.bytes_per_peer * plan.peers)
    one = 6 * 7 * (4 * len(world.genesis) + 192)
    assert sent[1] == sent[0], "there is one at the end of every run"
    assert sent[2] - sent[1] == one
    _, lossy = play(replace(plan, epoch_rounds=2, drop=0.5))
    assert lossy.bytes_per_peer * plan.peers > sent[2] + one, "what is lost is sent again"


def test_a_member_that_goes_on_from_another_model_is_noticed() -> None:
    class Crooked(Dpsgd):
        def adopt(self, state: MixingState, weights: torch.Tensor) -> MixingState:
            after = super().adopt(state, weights)
            return replace(after, model=weights + (state.me == world.ids[3]))

    world = World(replace(PLAN, epoch_rounds=2), strategy=Crooked())
    with pytest.raises(AnchorsDiffer):
        list(world.run())


def test_models_that_fit_no_snapshot_end_nothing() -> None:
    class Diverging(Dpsgd):
        def model(self, state: MixingState) -> torch.Tensor:
            return state.model * float("nan")

    world = World(replace(PLAN, rounds=3, epoch_rounds=2), strategy=Diverging())
    assert len(list(world.run())) == 3
    assert world.cuts.checked == 0 and world.cuts.committed is None


def test_nobody_waits_for_a_straggler_in_delta_log_and_everybody_does_elsewhere() -> None:
    plan = replace(PLAN, rounds=6, stragglers=0.125)
    assert play(plan)[0].time == 6
    assert play(replace(plan, strategy="dpsgd"))[0].time == 6 * plan.slowdown


def test_an_anchor_that_went_another_way_is_noticed() -> None:
    class Crooked(DeltaLog):
        def listen(self, state: LogState, messages: object, row: object = None) -> LogState:
            after = super().listen(state, messages)  # type: ignore[arg-type]
            if state.me != world.ids[3]:
                return after
            anchor = after.live.anchor.copy()
            anchor.values[5] += 1
            return replace(after, live=replace(after.live, anchor=anchor))

    honest = World(PLAN)
    assert isinstance(honest.strategy, DeltaLog)
    world = World(PLAN, strategy=Crooked(honest.schema, honest.strategy.genesis))
    with pytest.raises(AnchorsDiffer):
        list(world.run())


def test_the_same_seed_is_the_same_run() -> None:
    plan = replace(PLAN, rounds=4, drop=0.2, churn=0.25, stragglers=0.25, epoch_rounds=2)
    first, second = play(plan)[0], play(plan)[0]
    assert first == second
    assert play(replace(plan, seed=1))[0] != first


def test_robustness_helps_against_flipped_signs() -> None:
    """By what is known of the last cut in open rounds, of the round itself in closed ones."""
    attacked = replace(PLAN, attack="sign-flip", attackers=2, rounds=15)
    losses = {
        robust: play(replace(attacked, robust=robust))[0].loss_mean
        for robust in ("none", "auto", "trust")
    }
    assert losses["auto"] < losses["none"] - 0.05
    assert losses["trust"] < losses["none"] - 0.05


def test_liars_lose_their_weight_by_the_first_cut_and_the_honest_keep_theirs() -> None:
    attacked = replace(PLAN, attack="ipm", attackers=2, rounds=6)
    _, world = play(attacked)
    honest, liars = world.ids[:-2], world.ids[-2:]
    trust = world.states[honest[0]].epoch.trusted
    assert {trust[me] for me in liars} == {FLOOR_PERMILLE}
    assert {trust[me] for me in honest} == {FULL_PERMILLE}


def share_of_the_fast(world: World, epoch: EpochParameters) -> float:
    """What a delta of the fast peer moves the anchor by, of what another's with H steps does."""
    delta = hashed_delta("any", world.schema, kept_per_chunk=epoch.kept_per_chunk, size=1e-4)
    fast, other = (
        epoch.increments(delta, sender=world.ids[place], steps=steps, schema=world.schema)
        for place, steps in enumerate((4 * world.plan.local_steps, world.plan.local_steps))
    )
    return float(abs(fast).sum() / abs(other).sum())


def test_a_delta_of_four_times_the_steps_counts_a_quarter() -> None:
    """By its sender's weight, once a cut has shown how fast that is; normalised, from the start."""
    plan = replace(PLAN, fast=1 / 8, rounds=6)
    shares = []
    for each in (plan, replace(plan, normalise_steps=True)):
        _, world = play(each)
        state: LogState = world.states[world.ids[0]]
        assert set(state.epoch.trust) == {FULL_PERMILLE}
        assert world.cuts.checked == 2, "all anchors were equal"
        shares += [share_of_the_fast(world, epoch) for epoch in (state.epochs[0], state.epoch)]
    full, *quarters = shares
    assert quarters == pytest.approx([full / 4] * 3, rel=1e-2)


def test_everybody_has_a_text_of_their_own() -> None:
    texts, held_out = read_texts(70)
    assert len(texts) == 70
    assert len({tuple(text[:200].tolist()) for text in texts}) == 70
    assert len(held_out) > 100_000


def test_the_command_writes_csv_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["simulate", "--peers", "4", "--rounds", "2", "--local-steps", "1"]
    arguments += ["--hidden", "8", "--out", str(tmp_path), "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["summary"]["strategy"] == "delta-log"
    with (tmp_path / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss_mean"]) == printed["rounds"][1]["loss_mean"]
    assert json.loads((tmp_path / "summary.json").read_text()) == printed["summary"]


def test_plots_are_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    arguments = ["simulate", "--peers", "4", "--rounds", "2", "--local-steps", "1"]
    assert main([*arguments, "--hidden", "8", "--out", str(tmp_path), "--plots"]) == 0
    for name in ("loss.png", "consensus.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--strategy", "magic"], "--strategy magic: one of delta-log"),
        (["--attack", "ipm"], "--attack and --attackers belong together"),
        (["--attack", "ipm", "--attackers", "8"], "fewer than half"),
        (["--attack", "dissensus", "--attackers", "1"], "dissensus attacks neighbours"),
        (["--strategy", "noloco", "--robust", "cs+"], "noloco has no robust rule"),
        (["--degree", "3"], "even"),
        (["--strategy", "choco", "--normalise-steps"], "choco counts no steps"),
        (["--plots"], "give --out DIRECTORY too"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
