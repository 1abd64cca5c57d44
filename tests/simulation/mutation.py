"""What a deliberate mutation of the core is, and how one is put in and taken out again.

A mutation is a small function that replaces attributes of the consensus modules while a context
manager is open. It names what it replaces, and that must exist: a mutation of something that has
been renamed fails instead of testing nothing.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from tests.simulation.plan import Mode, Plan

PACKAGE = "shoal.consensus."
BUDGET = 2_000


class Patch:
    """Replaces attributes and remembers what they were."""

    def __init__(self) -> None:
        self._undo: list[tuple[object, str, object]] = []

    def set(self, owner: object, name: str, value: object) -> Any:
        """Replace one attribute that exists; returns what it was."""
        assert hasattr(owner, name), f"{owner} has no {name} to mutate"
        original = vars(owner)[name]
        self._undo.append((owner, name, original))
        setattr(owner, name, value)
        return original

    def everywhere(self, module: ModuleType, name: str, value: object) -> Any:
        """Replace a function in its module and wherever consensus/ has imported it."""
        original = vars(module)[name]
        for module_name, importer in sorted(sys.modules.items()):
            if module_name.startswith(PACKAGE) and vars(importer).get(name) is original:
                self.set(importer, name, value)
        return original

    def undo(self) -> None:
        while self._undo:
            owner, name, original = self._undo.pop()
            setattr(owner, name, original)


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """For the length of one call inside a mutated function."""
    patch = Patch()
    patch.set(owner, name, value)
    try:
        yield
    finally:
        patch.undo()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One mutation, the mode to look for it in, and how its schedules are aimed at it."""

    name: str
    apply: Callable[[Patch], None]
    mode: Mode = "core"
    # Fields of the plan that are set in place of what the seed draws.
    aim: tuple[tuple[str, Any], ...] = ()
    budget: int = BUDGET

    def aimed(self, plan: Plan) -> Plan:
        """The plan with this mutant's own fields, and no more faulty nodes than n allows."""
        plan = replace(plan, **dict(self.aim))
        faults = (plan.validators - 1) // 3
        byzantine = plan.byzantine[:faults]
        rotten = min(plan.rotten, faults - len(byzantine))
        return replace(plan, byzantine=byzantine, rotten=rotten)


@contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """The core with this mutation in it."""
    patch = Patch()
    try:
        mutant.apply(patch)
        yield
    finally:
        patch.undo()
