"""Blocking work that a command must be able to walk away from.

The pools of the standard library are waited for when a program ends; a disk or a resolver that
hangs would keep it there.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def aside(work: Callable[[], T], timeout_s: float | None) -> T:
    """Do blocking work in a thread that nobody waits for in the end; raises TimeoutError.

    timeout_s: None for no end.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # It is raised where it is waited for.
            failure = error
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True, name="aside").start()
    async with asyncio.timeout(timeout_s):
        return await future
