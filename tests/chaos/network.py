"""What the links between nodes suffer, whoever makes them suffer it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tests.chaos.schedule import Fault, Pair


@dataclass(frozen=True, slots=True)
class Condition:
    """The state of one directed link; the default is a healthy one."""

    blocked: bool = False
    loss: float = 0.0
    delay_s: float = 0.0
    # Bytes per second; 0 is no limit.
    rate: float = 0.0


HEALTHY = Condition()


class Network(Protocol):
    """Two kinds: network namespaces, and proxies on loopback."""

    # The kinds of faults that this one can make.
    kinds: tuple[str, ...]

    async def apply(self, conditions: dict[Pair, Condition]) -> None:
        """Make these the conditions of all links; one that is not named is healthy."""

    async def close(self) -> None:
        """Leave nothing behind."""


def conditions_of(active: Iterable[Fault]) -> dict[Pair, Condition]:
    """What several faults at once mean for each directed link."""
    conditions: dict[Pair, Condition] = {}
    for fault in active:
        for pair in fault.pairs:
            conditions[pair] = _worse(conditions.get(pair, HEALTHY), fault)
    return conditions


def _worse(known: Condition, fault: Fault) -> Condition:
    rates = [rate for rate in (known.rate, fault.amount * (fault.kind == "rate")) if rate]
    return Condition(
        blocked=known.blocked or fault.kind in ("partition", "one-way"),
        loss=max(known.loss, fault.amount * (fault.kind == "loss")),
        delay_s=known.delay_s + fault.amount * (fault.kind == "delay"),
        rate=min(rates, default=0.0),
    )
