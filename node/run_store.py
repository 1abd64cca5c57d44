"""What a node did in each of its runs: DIR/runs/000003.jsonl is all of the third start.

A row is one line of JSON and one write, so whoever kills the process costs the last row at most;
half a line at the end is passed over. The file is locked as long as its run lasts, which is how
others see that it does. When it has many rows the older ones are thinned out: of all but the newest
quarter every second one goes, so an old run keeps its shape and loses its details. Files of old
runs go when there are too many. The reasons are in docs/adr/0021.
"""

import errno
import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from shoal.node.errors import UserError
from shoal.node.run_rows import (
    CheckpointDone,
    Evaluated,
    RoundDone,
    Row,
    RunBegan,
    RunEnded,
    row_from_line,
    row_to_line,
)

FOLDER = "runs"
RUNS_MAX = 64
BYTES_MAX = 64 << 20
# Rows of one kind in a file, until the older ones are thinned out.
ROWS_MAX = 4096
# A file that somebody else wrote is not read whole whatever its size.
FILE_BYTES_MAX = 64 << 20
LINE_BYTES_MAX = 2 << 20


def runs_of(directory: Path) -> list[Path]:
    """The runs of a node's directory, oldest first."""
    return sorted(each for each in (directory / FOLDER).glob("*.jsonl") if each.stem.isdigit())


class RunStore:
    """Writes the rows of one run. For one thread; raises OSError where the disk does."""

    def __init__(self, directory: Path, run: str, *, rows_max: int = ROWS_MAX) -> None:
        self.path = directory / FOLDER / f"{run}.jsonl"
        self._rows_max = rows_max
        self._file = -1
        self._counts: Counter[str] = Counter()
        self._began: RunBegan | None = None

    def write(self, row: Row) -> None:
        """Append a row; it is whole in the file, or not there at all."""
        if isinstance(row, RunBegan):
            self._began = row
        if self._file < 0:
            # With the first row, and again while that cannot be written.
            self._file = self._open()
        if not isinstance(row, RunBegan):
            self._append(self._file, row)
        self._counts[row.kind] += 1
        if isinstance(row, RunEnded):
            self.close()
        elif self._counts[row.kind] > self._rows_max:
            # Where that fails, it is tried again when there are as many more.
            self._counts[row.kind] = 0
            self._thin_out()

    def close(self) -> None:
        """Let go of the file: a run that nobody has ended counts as killed from now on."""
        os.close(self._file)
        self._file = -1

    def _open(self) -> int:
        self.path.parent.mkdir(exist_ok=True)
        _drop_old_runs(self.path.parent)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if self._began is not None and os.fstat(file).st_size == 0:
                self._append(file, self._began)
        except OSError:
            os.close(file)
            raise
        return file

    def _append(self, file: int, row: Row) -> None:
        line, size = row_to_line(row), os.fstat(file).st_size
        if os.write(file, line) != len(line):
            os.ftruncate(file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _thin_out(self) -> None:
        rows = thinned(list(rows_of(self.path)))
        partial = self.path.with_suffix(".partial")
        new = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        try:
            fcntl.flock(new, fcntl.LOCK_EX)
            with open(os.dup(new), "wb") as file:
                file.writelines(map(row_to_line, rows))
            partial.replace(self.path)
        except OSError:
            os.close(new)
            partial.unlink(missing_ok=True)
            raise
        os.close(self._file)
        self._file = new
        self._counts = Counter(row.kind for row in rows)


def thinned(rows: list[Row]) -> list[Row]:
    """Half of all but the newest quarter of the rounds, and of the heights with what belongs to
    them; the first of each stays."""
    rounds = [row for row in rows if isinstance(row, RoundDone)]
    heights = sorted({row.height for row in rows if isinstance(row, CheckpointDone | Evaluated)})
    gone = {id(row) for row in rounds[1 : len(rounds) * 3 // 4 : 2]}
    gone_heights = set(heights[1 : len(heights) * 3 // 4 : 2])
    return [
        row
        for row in rows
        if id(row) not in gone
        and not (isinstance(row, CheckpointDone | Evaluated) and row.height in gone_heights)
    ]


def _drop_old_runs(folder: Path) -> None:
    paths = runs_of(folder.parent)
    sizes = {path: path.stat().st_size for path in paths}
    while len(paths) >= RUNS_MAX or (paths and sum(map(sizes.__getitem__, paths)) > BYTES_MAX):
        paths.pop(0).unlink()


# --- reading -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Run:
    """One run as its file tells it.

    how: how it ended; "" while it runs, and "killed" where nobody was left to say.
    """

    path: Path
    began: RunBegan
    rounds: list[RoundDone] = field(default_factory=list)
    checkpoints: list[CheckpointDone] = field(default_factory=list)
    held_out: dict[int, float | None] = field(default_factory=dict)
    how: str = ""
    last_s: float = 0.0

    @property
    def running(self) -> bool:
        """Whether its node was still at it when the file was read."""
        return not self.how


def rows_of(path: Path) -> Iterator[Row]:
    """The rows that a file has now, without what is no row of ours, or only half of one."""
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while line := file.readline(min(left, LINE_BYTES_MAX)):
            left -= len(line)
            with suppress(ValueError):
                yield row_from_line(line)


def read_run(path: Path) -> Run:
    """Read a run, of a node that runs or not; raises UserError where the file is none."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise UserError(f"{path}: larger than 64 MiB, so it is no run of a node")
        # Asked first: a run that ends while its file is read has its last row in it.
        locked = _is_locked(path)
        rows = list(rows_of(path))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; `shoal runs list DIR` shows what is there"
        ) from None
    if not rows or not isinstance(rows[0], RunBegan):
        raise UserError(f"{path} is no run of a node; `shoal runs list DIR` shows what is there")
    run = Run(path, rows[0])
    for row in rows:
        run.last_s = row.time_s
        match row:
            case RoundDone():
                run.rounds.append(row)
            case CheckpointDone():
                run.checkpoints.append(row)
            case Evaluated():
                run.held_out[row.height] = row.held_out_loss
            case RunEnded():
                run.how = row.how
    if not run.how and not locked:
        run.how = "killed"
    return run


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
