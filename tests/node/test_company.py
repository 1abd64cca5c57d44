"""Whom a node talks to: members, those whose vote may be needed, and those who say goodbye."""

from types import SimpleNamespace
from typing import Any

from shoal.node.company import FAREWELL_S, Company

ME, ONE, TWO, TOLD = (bytes([number]) * 32 for number in range(4))


class Situation:
    """A replica of which only the lists count."""

    def __init__(self) -> None:
        self.members, self.validators, self.evicted = {ME, ONE, TWO}, {ONE}, set[bytes]()
        self.now = 0.0

    def replica(self) -> Any:
        return SimpleNamespace(
            ledger=SimpleNamespace(
                members=self.members, is_evicted=lambda peer: peer in self.evicted
            ),
            validators=SimpleNamespace(keys=tuple(self.validators)),
        )

    def company(self) -> Company:
        return Company(self.replica, me=ME, told=[TOLD], clock=lambda: self.now)


def test_a_validator_is_heard_until_its_epoch_ends_and_then_to_say_goodbye() -> None:
    at = Situation()
    company = at.company()
    assert company.trusted() == {ME, ONE, TWO}
    at.members.discard(ONE)
    assert ONE in company.trusted()
    at.validators.clear()
    at.now = 100.0
    assert ONE in company.trusted()
    at.now += FAREWELL_S - 1
    assert ONE in company.trusted()
    at.now += 1
    assert company.trusted() == {ME, TWO}


def test_who_was_put_out_is_not_heard_at_all() -> None:
    at = Situation()
    company = at.company()
    company.trusted()
    at.members.discard(TWO)
    at.evicted.add(TWO)
    assert TWO not in company.trusted()


def test_who_comes_back_stays() -> None:
    at = Situation()
    company = at.company()
    company.trusted()
    at.members.discard(TWO)
    company.trusted()
    at.members.add(TWO)
    at.now = 2 * FAREWELL_S
    assert TWO in company.trusted()


def test_a_newcomer_hears_those_it_was_told_of_until_it_is_a_member() -> None:
    at = Situation()
    at.members.discard(ME)
    company = at.company()
    assert TOLD in company.trusted()
    at.members.add(ME)
    assert TOLD not in company.trusted()
