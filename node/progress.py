"""How far a command is, for whoever waits at a terminal: one line on stderr that goes away again.

What takes long says so with `tell`, wherever it is called from; a command that a person waits for
shows it with `shown`. Where stderr is no terminal nothing is written at all: a log would fill with
it, and a program that reads the answer has no use for it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# What is being done, how much of it is done, and out of how much (0: nobody knows).
Tell = Callable[[str, int, int], None]


def _to_nobody(what: str, done: int, of: int) -> None:
    """Nobody is looking."""


_listener: ContextVar[Tell] = ContextVar("progress", default=_to_nobody)


def tell(what: str, done: int = 0, of: int = 0) -> None:
    """Say what is being done now; from any thread that asyncio.to_thread has started."""
    _listener.get()(what, done, of)


@contextmanager
def heard(listener: Tell) -> Iterator[None]:
    """Hand what is told inside to `listener`, which must not take long."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def shown(what: str, *, still: bool = False) -> Iterator[None]:
    """Show what is told inside, beginning with `what`, where stderr is a terminal.

    still: starts no thread, so nothing moves between what is told.
    """
    # Every command imports this module, and few of them show anything.
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[share]}"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, auto_refresh=not still, refresh_per_second=4
    ) as progress:
        task = progress.add_task(what, total=None, share="")

        def show(what: str, done: int, of: int) -> None:
            progress.update(
                task,
                description=what,
                completed=done,
                total=of or None,
                share=f"{done} of {of}" if of else "",
            )

        with heard(show):
            yield
