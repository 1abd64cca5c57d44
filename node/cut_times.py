"""How long the parts of a cut took, as this node saw them.

propose    it built the candidate               (the proposer)
check      it recomputed somebody's candidate   (the other validators)
attest     from then until a quorum had attested it (the proposer)
order      from the last of these until the log had it
commit     from then until the anchor was rebuilt and on the disk

A member that does not vote sees the last one only.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.node.run_rows import Stage, Stages

# Heights that are decided and not rebuilt here yet; a node that is far behind fetches the newest.
HEIGHTS_MAX = 64


class CutTimes:
    """The stages of the heights that are not done yet."""

    def __init__(self) -> None:
        self._stages: dict[int, Stages] = {}
        self._last: dict[int, float] = {}

    @contextmanager
    def during(self, height: int, name: str) -> Iterator[None]:
        """The work below is one stage."""
        with self._of(height)(name):
            yield
        self._last[height] = time.perf_counter()

    def until_now(self, height: int, name: str) -> None:
        """A stage that began where the last one ended; the first of a height is its beginning."""
        now, last = time.perf_counter(), self._last.get(height)
        if last is not None:
            self._of(height).add(name, now - last)
        self._last[height] = now

    def take(self, height: int) -> list[Stage]:
        """The stages of a height that is done; it and what is below are forgotten."""
        done = self._of(height).done
        self._forget(height)
        return done

    def _of(self, height: int) -> Stages:
        self._forget(height - HEIGHTS_MAX)
        return self._stages.setdefault(height, Stages())

    def _forget(self, upto: int) -> None:
        for known in (self._stages, self._last):
            for height in [height for height in known if height <= upto]:
                del known[height]
