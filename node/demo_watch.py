"""Watching the demo's nodes: ask each one again and again, show it, and know when it is over."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from rich.console import Console
from rich.live import Live

from shoal.node.demo_processes import NodeProcess
from shoal.node.demo_view import Row, progress_line, progress_view
from shoal.node.errors import UserError
from shoal.node.inspect_client import StatusReply, ask_status

POLL_SECONDS = 0.5
POLL_DEADLINE_S = 3.0
# Between two lines where there is no terminal to draw a table on.
LINE_SECONDS = 5.0
# What came after the last full cut may stay uncommitted: nothing new for so long is the end.
SETTLE_SECONDS = 6.0
# A node that is killed with -9 is started again, so often.
RESTARTS_MAX = 3


@dataclass(slots=True)
class Watched:
    """One node as the demo sees it."""

    node: NodeProcess
    channel: grpc.aio.Channel
    # Starts it again in its directory.
    restart: Callable[[], NodeProcess]
    reply: StatusReply | None = None
    restarts: int = 0
    # How it died, when it did and stayed dead.
    death: str = ""

    @property
    def training_failed(self) -> bool:
        return self.reply is not None and self.reply.training.state.startswith("failed")

    @property
    def finished(self) -> bool:
        """Whether it will not make another round."""
        done = self.reply is not None and self.reply.training.state == "finished"
        return bool(self.death) or self.training_failed or done

    async def poll(self) -> None:
        """Ask it how it is; an answer that does not come leaves the last one standing."""
        code = self.node.exit_code()
        if code == -signal.SIGKILL and self.restarts < RESTARTS_MAX:
            # Somebody tries the demo's promise: it must come back from its own disk.
            self.restarts += 1
            self.node = self.restart()
        elif code is not None and not self.death:
            self.death = f"signal {-code}" if code < 0 else f"exit code {code}"
        with contextlib.suppress(UserError):
            self.reply = await ask_status(
                self.channel, self.node.address, deadline_s=POLL_DEADLINE_S
            )

    def row(self) -> Row:
        name = f"{self.node.name} (restarted)" if self.restarts else self.node.name
        return Row(name=name, reply=self.reply, death=self.death)


Condition = Callable[[Sequence[Watched], float], bool]


async def watch_until(
    condition: Condition,
    watched: Sequence[Watched],
    *,
    seconds: float,
    show: Callable[[Sequence[Watched]], None],
    what: str,
) -> str:
    """Poll and show until the condition holds; returns "" then, or one line of why it will not.

    condition: called with the nodes and the time in seconds of a monotonic clock.
    """
    deadline = time.monotonic() + seconds
    while True:
        await asyncio.gather(*(each.poll() for each in watched))
        show(watched)
        now = time.monotonic()
        if condition(watched, now):
            return ""
        if problem := hopeless(watched):
            return problem
        if now >= deadline:
            return f"{what} took longer than {seconds:.0f} s"
        await asyncio.sleep(POLL_SECONDS)


def all_answer(watched: Sequence[Watched], now: float) -> bool:
    """Every node that lives has answered once."""
    return all(each.reply is not None or each.death for each in watched)


class Settled:
    """Every round is made and the last cut is committed and rebuilt by everybody that lives."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._seen: object = None
        self._since = 0.0

    def __call__(self, watched: Sequence[Watched], now: float) -> bool:
        alive = [each for each in watched if not each.death and each.reply is not None]
        replies = [each.reply for each in alive if each.reply is not None]
        last = [reply.checkpoints[-1] for reply in replies if reply.checkpoints]
        seen = [(reply.training.state, len(reply.checkpoints)) for reply in replies]
        if seen != self._seen:
            self._seen, self._since = seen, now
        if not all(each.finished for each in watched) or len(last) != len(replies) or not last:
            return False
        if len({each.height for each in last}) != 1 or not all(each.materialised for each in last):
            return False
        everything_in = all(reply.gossip.pending_deltas == 0 for reply in replies)
        complete = everything_in and last[0].round >= self._rounds
        return complete or now - self._since >= SETTLE_SECONDS


def hopeless(watched: Sequence[Watched]) -> str:
    """Why waiting is of no use any more, or nothing."""
    alive = [each for each in watched if not each.death]
    quorum = max((each.reply.consensus.quorum for each in watched if each.reply), default=1)
    if len(alive) < quorum:
        return f"only {len(alive)} of {len(watched)} nodes live, {quorum} are needed to commit"
    return ""


class Display:
    """A live table on a terminal, one line every few seconds elsewhere."""

    def __init__(self, console: Console, *, rounds: int) -> None:
        self._console = console
        self._rounds = rounds
        self._started = time.monotonic()
        self._next_line = 0.0
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator["Display"]:
        """Hold the terminal for the table; what stands there last stays."""
        if not self._console.is_terminal:
            yield self
            return
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield self
        self._live = None

    def __call__(self, watched: Sequence[Watched]) -> None:
        elapsed_s = time.monotonic() - self._started
        rows = [each.row() for each in watched]
        if self._live is not None:
            view = progress_view(rows, rounds=self._rounds, elapsed_s=elapsed_s)
            self._live.update(view, refresh=True)
        elif elapsed_s >= self._next_line:
            self._next_line = elapsed_s + LINE_SECONDS
            self._console.print(progress_line(rows, rounds=self._rounds, elapsed_s=elapsed_s))


async def follow(console: Console, title: str, progress: Callable[[], str]) -> None:
    """Show how far something is until this is cancelled: a spinner, or a line now and then."""
    if not console.is_terminal:
        said = ""
        while True:
            if progress() != said:
                said = progress()
                console.print(f"{title}: {said}")
            await asyncio.sleep(LINE_SECONDS)
    with console.status(title) as status:
        while True:
            status.update(f"{title}: {progress()}")
            await asyncio.sleep(POLL_SECONDS)
