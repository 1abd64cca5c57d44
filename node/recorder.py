"""Hands the rows of a run to the run store and to the trackers, and never waits for any of them.

Each has a thread and a bounded queue of its own: one that hangs loses its own rows and nothing
else, one that raises costs a line in the log, and training and the event loop know nothing of it.
"""

import asyncio
import os
import platform
import queue
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import psutil
import structlog

from shoal import __version__
from shoal.node.errors import UserError, one_line
from shoal.node.presets import flatten
from shoal.node.run_rows import RoundDone, Row, RunBegan, RunEnded
from shoal.node.run_store import RunStore, runs_of
from shoal.node.status import NodeState

log = structlog.get_logger()

# Rows of hours, where a tracker is slow; of one that hangs, a few hundred kilobytes.
ROWS_WAITING_MAX = 1024
# How long the end of the node waits for all of them together.
CLOSE_S = 5.0
HOW_MAX = 300
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


class Tracker(Protocol):
    """Somebody who is told of a run: RunBegan first, then its rows in order, RunEnded last."""

    def write(self, row: Row) -> None:
        """Take a row. May block and may raise: it is called in a thread of its own."""


class Lane:
    """One tracker with its thread and its queue."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name = name
        self._tracker = tracker
        self._rows: queue.Queue[Row] = queue.Queue(ROWS_WAITING_MAX)
        self._behind = False
        self._failing = False
        # A daemon: a tracker that hangs must not hold up the end of the process.
        self.thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self.thread.start()

    @property
    def full(self) -> bool:
        """Whether there is no room for another row now."""
        return self._rows.full()

    def put(self, row: Row) -> None:
        """Queue a row, or drop it where the queue is full."""
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            if not self._behind:
                log.warning("tracking.behind", tracker=self.name, why="rows are dropped")
            self._behind = True

    def end(self, row: RunEnded, until: float) -> None:
        """Queue the last row, and wait for room where there is none. Blocks."""
        with suppress(queue.Full):
            self._rows.put(row, timeout=max(0.0, until - time.monotonic()))

    def join(self, until: float) -> bool:
        """Wait for the last row to be taken; whether it was, in time. Blocks."""
        self.thread.join(max(0.0, until - time.monotonic()))
        return not self.thread.is_alive()

    def _work(self) -> None:
        row: Row | None = None
        while not isinstance(row, RunEnded):
            row = self._rows.get()
            try:
                self._tracker.write(row)
            except Exception as error:  # whatever a library may raise; the node goes on
                if not self._failing:
                    why = one_line(f"{type(error).__name__}: {error}")[:HOW_MAX]
                    log.warning("tracking.failed", tracker=self.name, row=row.kind, why=why)
                self._failing = True
            else:
                if self._failing:
                    log.info("tracking.works-again", tracker=self.name)
                self._failing = False


class Recorder:
    """Completes the rows that the node tells, and passes them on."""

    def __init__(
        self,
        state: NodeState,
        trackers: Mapping[str, Tracker],
    ) -> None:
        self._state = state
        self._deltas_made = 0
        self._lanes = [Lane(name, tracker) for name, tracker in trackers.items()]

    def tell(self, row: Row) -> None:
        """Pass a row on; returns at once, on the event loop."""
        if isinstance(row, RoundDone):
            self._deltas_made += row.delta_bytes > 0
            row = replace(
                row,
                sent_bytes=dict(self._state.meters.sent_bytes),
                deltas_made=self._deltas_made,
                device=self._state.device,
            )
        for lane in self._lanes:
            lane.put(row)

    def end(self, how: str) -> None:
        """Tell how the run ended, and give up on whoever does not listen. Blocks for CLOSE_S."""
        row = RunEnded(time_s=time.time(), how=one_line(how)[:HOW_MAX])
        until = time.monotonic() + CLOSE_S
        # Who has no room is asked last: all others finish while it is waited for.
        for lane in sorted(self._lanes, key=lambda lane: lane.full):
            lane.end(row, until)
        for lane in self._lanes:
            if not lane.join(until):
                log.warning("tracking.given-up", tracker=lane.name, why="it did not finish in time")


@asynccontextmanager
async def recording(
    state: NodeState, boot: int, trackers: Mapping[str, Tracker]
) -> AsyncIterator[Recorder]:
    """A run from its first row to its last, which says how it ended: "stopped", or the error."""
    run = f"{boot:06}"
    began = run_began(state, run)
    store = RunStore(state.settings.node.directory, run)
    recorder = Recorder(state, {"run store": store, **trackers})
    recorder.tell(began)
    how = "stopped"
    try:
        yield recorder
    except BaseException as error:
        named = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        how = f"failed: {named}{error}"
        raise
    finally:
        await asyncio.to_thread(recorder.end, how)


def run_began(state: NodeState, run: str) -> RunBegan:
    """The first row of a run: what was configured, with what, and where."""
    settings, mesh = state.settings, state.mesh.now()
    before = [path.stem for path in runs_of(settings.node.directory) if path.stem < run]
    return RunBegan(
        run=run,
        previous=before[-1] if before else "",
        time_s=time.time(),
        node=settings.node.name,
        node_id=state.node_id.hex(),
        mesh_id=state.genesis.mesh_id.hex(),
        height=state.model.height,
        parameters=state.model.schema.layout.total,
        versions={
            "shoal": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in LIBRARIES},
        },
        machine={
            "platform": platform.platform(),
            "cores": str(os.cpu_count()),
            "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        },
        settings=flatten(settings.model_dump(mode="json")),
        mesh={name: float(value) for name, value in asdict(mesh).items()},
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
