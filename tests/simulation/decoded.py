"""Decoding each distinct byte string once, however many nodes it is delivered to.

Messages and operations are immutable, so the nodes of a simulated cluster can share one decoded
object. It is still the real code that runs, once on every byte string that anybody sends, and
refusing is remembered as well. Whoever in consensus/ uses one of these functions is given the
remembering one for as long as a schedule runs.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

from shoal.consensus import messages, records
from shoal.consensus.errors import ConsensusError

T = TypeVar("T")


def _remembering(function: Callable[[bytes], T]) -> Callable[[bytes], T]:
    known: dict[bytes, T] = {}
    refused: dict[bytes, str] = {}

    @wraps(function)
    def remember(data: bytes) -> T:
        if data in known:
            return known[data]
        if data in refused:
            raise ConsensusError(refused[data])
        try:
            found = known[data] = function(data)
        except ConsensusError as error:
            refused[data] = error.reason
            raise
        return found

    _memories.extend((known, refused))
    return remember


_memories: list[dict[bytes, Any]] = []
decode = _remembering(messages.decode)
_SHARED: dict[object, object] = {
    messages.decode: decode,
    records.parse_operation: _remembering(records.parse_operation),
    records.operation_digest: _remembering(records.operation_digest),
}


@contextmanager
def shared_decoding() -> Iterator[None]:
    """While this is open the state machines decode through here; it forgets all at the end."""
    changed: list[tuple[dict[str, object], str, object]] = []
    for module_name, module in sorted(sys.modules.items()):
        if not module_name.startswith("shoal.consensus."):
            continue
        for name, value in sorted(vars(module).items()):
            if callable(value) and value in _SHARED:
                changed.append((vars(module), name, value))
                vars(module)[name] = _SHARED[value]
    try:
        yield
    finally:
        for namespace, name, original in changed:
            namespace[name] = original
        for memory in _memories:
            memory.clear()
