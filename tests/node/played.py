"""Tests that are coroutines: played in an event loop of their own, the daemon's unless told."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

import uvloop

P = ParamSpec("P")


def played(story: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run the test in uvloop, as the daemon does."""

    @functools.wraps(story)
    def test(*arguments: P.args, **named: P.kwargs) -> None:
        uvloop.run(story(*arguments, **named))

    return test


def played_plainly(story: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run the test in the standard library's loop, as the commands do."""

    @functools.wraps(story)
    def test(*arguments: P.args, **named: P.kwargs) -> None:
        asyncio.run(story(*arguments, **named))

    return test
