"""The scheduler of a fetch, told by hand what happened: who is asked for what, and when."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.node.fetch_plan import Ask, FetchPlan, FetchSettings

A, B, C, D = (bytes([number]) * 32 for number in range(4))
QUICK = FetchSettings(parallel=2, stall_s=10, backoff_s=1, failures_max=3)


def plan_of(*addresses: bytes, settings: FetchSettings = QUICK) -> FetchPlan:
    return FetchPlan(addresses, settings)


def test_two_holders_share_the_work_and_nothing_is_asked_twice() -> None:
    plan = plan_of(A, B, C, D)
    plan.holder("one", [A, B, C, D])
    plan.holder("two", [A, B, C, D])
    asks = plan.asks(0)
    assert Counter(ask.holder for ask in asks) == {"one": 2, "two": 2}
    assert {ask.address for ask in asks} == {A, B, C, D}
    assert plan.asks(0) == []


def test_what_few_have_comes_first() -> None:
    plan = plan_of(A, B, C, settings=FetchSettings(parallel=1))
    plan.holder("one", [A, B, C])
    plan.holder("two", [A, B])
    assert Ask("one", C) in plan.asks(0)


def test_a_holder_is_only_asked_for_what_it_has() -> None:
    plan = plan_of(A, B)
    plan.holder("one", [B, C])
    assert plan.asks(0) == [Ask("one", B)]
    assert plan.nobody_has() == A


def test_a_stall_gives_the_chunk_to_another_and_doubles_the_patience() -> None:
    plan = plan_of(A)
    plan.holder("slow", [A])
    assert plan.asks(0) == [Ask("slow", A)]
    assert plan.wake_at(0) == 10
    assert plan.stalled(9.9) == []
    plan.holder("other", [A])
    assert plan.stalled(10) == [Ask("slow", A)]
    assert plan.asks(10) == [Ask("other", A)]
    plan.failed("other", A, 11, "gone")
    assert plan.asks(11.5) == [Ask("slow", A)], "its pause of one second is over first"
    assert plan.stalled(31) == [], "twenty seconds this time"
    assert plan.stalled(31.5) == [Ask("slow", A)]


def test_failures_pause_a_holder_longer_each_time_and_then_it_is_given_up() -> None:
    plan = plan_of(A)
    plan.holder("one", [A])
    now = 0.0
    for pause in (1, 2):
        assert plan.asks(now) == [Ask("one", A)]
        plan.failed("one", A, now, "refused")
        assert plan.asks(now + pause - 0.1) == []
        assert plan.wake_at(now) == now + pause
        assert plan.nobody_has() is None
        now += pause
    assert plan.asks(now) == [Ask("one", A)]
    plan.failed("one", A, now, "refused")
    assert plan.nobody_has() == A
    assert plan.gone() == {"one": "refused (3 times)"}


def test_requests_that_fail_together_are_one_failure() -> None:
    plan = plan_of(A, B)
    plan.holder("one", [A, B])
    for ask in plan.asks(0):
        plan.failed("one", ask.address, 0, "connection lost")
    plan.holder("one", [A, B])
    assert plan.wake_at(0) == 1, "not two, for the second"


def test_after_a_failure_fewer_requests_at_a_time_until_it_delivers() -> None:
    plan = plan_of(A, B, C, D)
    plan.holder("one", [A, B, C, D])
    first, second = plan.asks(0)
    plan.failed("one", first.address, 0, "busy")
    plan.arrived("one", second.address, 1)
    assert len(plan.asks(1)) == 2, "it delivered: as many as before"
    for ask in [Ask("one", first.address), Ask("one", C)]:
        plan.failed("one", ask.address, 1, "busy")
    assert len(plan.asks(2)) == 1


def test_a_liar_is_asked_nothing_more_and_what_it_owed_goes_to_others() -> None:
    plan = plan_of(A, B)
    plan.holder("liar", [A, B])
    assert len(plan.asks(0)) == 2
    assert set(plan.lied("liar", "wrong bytes")) == {Ask("liar", A), Ask("liar", B)}
    plan.holder("honest", [A, B])
    plan.holder("liar", [A, B])
    assert {ask.holder for ask in plan.asks(0)} == {"honest"}
    plan.lacks("honest", A)
    assert plan.nobody_has() == A, "what a liar says that it has gives no hope"
    assert plan.gone() == {"liar": "wrong bytes"}


def test_one_that_lacks_a_chunk_is_not_asked_for_it_again_but_for_others() -> None:
    plan = plan_of(A, B, settings=FetchSettings(parallel=1))
    plan.holder("one", [A, B])
    assert plan.asks(0) == [Ask("one", A)]
    plan.lacks("one", A)
    assert plan.asks(0) == [Ask("one", B)]
    assert plan.nobody_has() == A


def test_an_idle_holder_helps_the_one_that_is_slow_at_the_end() -> None:
    plan = plan_of(A, B, settings=FetchSettings(parallel=1, patience=3))
    plan.holder("fast", [A, B])
    plan.holder("slow", [A, B])
    assert set(plan.asks(0)) == {Ask("fast", A), Ask("slow", B)}
    assert plan.arrived("fast", A, 1) == []
    assert plan.asks(1) == [], "one second is what it needs itself; three is late"
    assert plan.wake_at(1) == 3
    assert plan.asks(3) == [Ask("fast", B)]
    assert plan.arrived("fast", B, 4) == [Ask("slow", B)], "called off"
    assert plan.done


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_whatever_goes_wrong_it_ends_and_only_with_everything_or_a_name(
    data: st.DataObject,
) -> None:
    """Any order of deliveries, failures, stalls, lies: the plan neither hangs nor forgets."""
    wanted = [bytes([number]) * 32 for number in range(6)]
    plan = FetchPlan(wanted, QUICK)
    names = ["one", "two", "three"]
    for name in names:
        plan.holder(name, data.draw(st.sets(st.sampled_from(wanted)), label=name))
    now = 0.0
    arrived: set[bytes] = set()
    flying: set[Ask] = set()
    for _ in range(400):
        if plan.done or plan.nobody_has() is not None:
            break
        flying |= set(plan.asks(now))
        something_ends = data.draw(st.booleans())
        if flying and something_ends:
            ask = data.draw(st.sampled_from(sorted(flying)))
            flying.discard(ask)
            match data.draw(st.sampled_from(["arrives", "fails", "lacks", "lies"])):
                case "arrives":
                    arrived.add(ask.address)
                    flying -= set(plan.arrived(ask.holder, ask.address, now))
                case "fails":
                    plan.failed(ask.holder, ask.address, now, "no")
                case "lacks":
                    plan.lacks(ask.holder, ask.address)
                case _:
                    flying -= set(plan.lied(ask.holder, "a lie"))
            continue
        wake_at = plan.wake_at(now)
        assert wake_at is not None, "there is always something that time changes"
        assert wake_at > now
        now = wake_at
        flying -= set(plan.stalled(now))
    else:
        pytest.fail("it goes on for ever")
    assert plan.done == (arrived == set(wanted))
