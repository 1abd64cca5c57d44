"""The detector on a simulated mesh: who is dead is found soon, who lives is not called dead."""

from statistics import median

import pytest

from shoal.gossip.eyes import DetectorSettings
from shoal.gossip.liveness import Evidence, State
from tests.gossip.simulated_eyes import Sky, Weather

SIZES = [2, 3, 4, 5, 8, 16, 31]
SETTLE_S = 8.0


def settled(size: int, seed: int, *, patience: float = 1.0, seconds: float = SETTLE_S) -> Sky:
    sky = Sky(size, seed, settings=DetectorSettings(patience=patience))
    sky.run(seconds)
    assert all(set(sky.states(name).values()) <= {State.ALIVE} for name in sky.names)
    sky.verdicts.clear()
    return sky


def delays(sky: Sky, victim: bytes, since: float) -> list[float]:
    found = sky.took_for_dead(victim, since=since)
    assert found.keys() >= set(sky.names) - {victim}, "somebody has not noticed"
    return sorted(at - since for judge, at in found.items() if judge != victim)


@pytest.mark.parametrize("size", SIZES)
def test_a_killed_process_is_dead_within_a_second(size: int) -> None:
    sky = settled(size, seed=size)
    victim, since = sky.names[size // 2], sky.now
    sky.kill(victim)
    sky.run(5)
    assert median(delays(sky, victim, since)) < 1.0
    assert not sky.false_deaths()


@pytest.mark.parametrize("size", SIZES)
def test_a_silent_cut_is_dead_within_six_seconds(size: int) -> None:
    sky = settled(size, seed=size)
    victim, since = sky.names[size // 2], sky.now
    sky.cut_off(victim)
    sky.run(8)
    assert max(delays(sky, victim, since)) < 6.0
    others = [v for v in sky.false_deaths() if v.subject != victim and v.judge != victim]
    assert not others


def test_a_large_mesh_where_not_everybody_has_a_link_to_everybody() -> None:
    sky = settled(60, seed=3, seconds=25)
    victim, since = sky.names[-1], sky.now
    sky.kill(victim)
    sky.run(8)
    times = delays(sky, victim, since)
    assert times[0] < 1.0 and times[-1] < 6.0
    assert not sky.false_deaths()


def test_who_is_cut_off_itself_calls_nobody_dead() -> None:
    sky = settled(5, seed=1)
    sky.cut_off(sky.names[0])
    sky.run(30)
    alone = [v for v in sky.verdicts if v.judge == sky.names[0] and v.state is State.DEAD]
    assert not alone
    note = sky.hosts[sky.names[0]].detector.opinions()[sky.names[1]].note
    assert "less than half" in note


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("everybody", [False, True])
def test_a_blocked_loop_is_neither_dead_nor_sees_deaths(seed: int, everybody: bool) -> None:
    sky = settled(5, seed)
    for name in sky.names if everybody else sky.names[:1]:
        sky.stall_often(name, seconds=2.0, every_s=10.0)
    sky.run(120)
    assert any(v.state is State.SUSPECT for v in sky.verdicts), "it was noticed"
    assert not sky.false_deaths()


@pytest.mark.parametrize("seed", range(3))
def test_a_longer_stall_is_learned_from(seed: int) -> None:
    sky = settled(4, seed)
    sky.stall_often(sky.names[0], seconds=5.0, every_s=20.0)
    sky.run(60)
    early = len(sky.false_deaths())
    sky.run(100)
    assert len(sky.false_deaths()) == early, "the second such silence is waited for"


def test_what_is_learned_of_a_process_ends_with_it() -> None:
    sky = settled(4, seed=6)
    victim = sky.names[0]
    for pause_s in (5.0, 5.0):
        sky.stall(victim, pause_s)
        sky.run(20)
    case = sky.hosts[sky.names[1]].detector._eyes.cases[victim]
    assert max(case.false_silences) > 4
    sky.kill(victim)
    sky.run(3)
    sky.restart(victim)
    sky.run(5)
    assert not case.false_silences


@pytest.mark.parametrize("size", [4, 7, 10])
def test_liars_who_accuse_everybody_kill_nobody(size: int) -> None:
    sky = settled(size, seed=size)
    for name in sky.names[: (size - 1) // 3]:
        sky.hosts[name].liar = True
    sky.stall_often(sky.names[-1], seconds=2.0, every_s=10.0)
    sky.run(30)
    assert not sky.false_deaths()
    victim, since = sky.names[-2], sky.now
    sky.kill(victim)
    sky.run(10)
    honest = [name for name in sky.names if not sky.hosts[name].liar and name != victim]
    found = sky.took_for_dead(victim, since=since)
    assert all(name in found for name in honest), "nor do they hide a death"


@pytest.mark.parametrize("size", [4, 10])
@pytest.mark.parametrize("seed", range(3))
def test_a_line_that_is_broken_one_way_is_gone_around(size: int, seed: int) -> None:
    sky = settled(size, seed)
    sky.block([sky.names[0]], [sky.names[1]])
    sky.run(40)
    assert not sky.false_deaths()
    assert sky.states(sky.names[0])[sky.names[1]] is State.ALIVE


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_delay_make_it_slower_not_wrong(seed: int) -> None:
    sky = Sky(10, seed, weather=Weather(loss=0.2, latency_s=(0.02, 0.3)))
    sky.run(60)
    assert not sky.false_deaths()
    victim, since = sky.names[4], sky.now
    sky.cut_off(victim)
    sky.run(30)
    assert delays(sky, victim, since)


def test_who_comes_back_is_alive_at_once_under_a_higher_number() -> None:
    sky = settled(4, seed=9)
    victim = sky.names[2]
    sky.kill(victim)
    sky.run(4)
    assert sky.states(sky.names[0])[victim] is State.DEAD
    sky.verdicts.clear()
    sky.restart(victim)
    sky.run(3)
    opinion = sky.hosts[sky.names[0]].detector.opinions()[victim]
    assert opinion.state is State.ALIVE
    assert opinion.incarnation >= 2 << 32 and opinion.evidence is Evidence.NONE
    sky.run(30)
    assert not sky.false_deaths()


def test_two_of_four_dead_at_once_are_both_found() -> None:
    sky = settled(4, seed=5)
    for victim in sky.names[:2]:
        sky.kill(victim)
    sky.run(5)
    for judge in sky.names[2:]:
        states = sky.states(judge)
        assert [states[name] for name in sky.names[:2]] == [State.DEAD] * 2


def test_an_opinion_says_why() -> None:
    sky = settled(5, seed=2)
    victim = sky.names[0]
    sky.cut_off(victim)
    sky.run(6)
    opinion = sky.hosts[sky.names[1]].detector.opinions()[victim]
    assert opinion.state is State.DEAD and opinion.evidence is Evidence.SILENT
    assert len(opinion.accusers) >= opinion.needed == 2
    assert opinion.silent_s >= opinion.timeout_s >= 3.5
    assert opinion.relays and all(said in ("no", "silent") for _, said in opinion.relays)


def test_patience_scales_how_long_it_takes() -> None:
    times = {}
    for patience in (1.0, 2.0):
        sky = settled(5, seed=4, patience=patience)
        victim, since = sky.names[0], sky.now
        sky.cut_off(victim)
        sky.run(20)
        times[patience] = median(delays(sky, victim, since))
    assert 1.7 < times[2.0] / times[1.0] < 2.3


def test_what_a_quiet_mesh_costs_does_not_grow_with_its_size() -> None:
    rates = []
    for size in (10, 40):
        sky = settled(size, seed=1)
        before = sky.messages
        sky.run(30)
        rates.append((sky.messages - before) / 30 / size)
    assert rates[1] < 1.2 * rates[0] < 10
