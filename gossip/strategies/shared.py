"""Work that members of one process have in common, done once.

Where a state follows from an earlier one and a *set* of messages alone, members that hold the same
object and hear the same set get the same object back. A daemon has one member and gains nothing;
a simulation of a thousand has one model instead of a thousand equal ones.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")
REMEMBERED = 32


class Shared(Generic[T]):
    """The newest results of `of`, a few of them."""

    def __init__(self) -> None:
        self._results: OrderedDict[tuple[int, Hashable], tuple[object, T]] = OrderedDict()

    def of(self, before: object, messages: Hashable, work: Callable[[], T]) -> T:
        """`work()`, or what it gave for this very object `before` and equal `messages`."""
        key = (id(before), messages)
        if key not in self._results:
            # With `before` held, its id cannot become another object's.
            self._results[key] = (before, work())
            if len(self._results) > REMEMBERED:
                self._results.popitem(last=False)
        return self._results[key][1]
