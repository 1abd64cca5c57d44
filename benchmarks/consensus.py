"""How fast operations become final: python -m benchmarks.consensus [--quick] [--sizes 4 7 16 31].

Each validator is a process with the daemon's own links, driver, replica and database: real gRPC
over loopback, real Ed25519, SQLite with fsync; nobody trains. JSON lines:

- latency: from submitting one operation to its durable commit at the submitter, one at a time; all
  from one validator, so that it is the primary in every n-th turn. Beside it what it is made of:
  the round trip of a ping over the same link, one durable transaction, one signature, one check,
  and the roofline of one machine: the processor time that all validators together spend on one
  operation (`cpu_ms`), and what that takes with every core at it (`cpu_bound_ms`).
- throughput: operations per second with 64 of them under way.
- failover: the primary's process is killed with -9 and an operation submitted at the same moment;
  seconds from the kill to its commit. The killed one is started again before the next kill.

Exits with 1 when a goal is missed. What shares the machine's cores is part of what is measured: 31
validators on two cores are not 31 machines.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from shoal.node.config import ConsensusSettings
from shoal.node.identity import Identity
from shoal.node.ports import free_ports

START_SECONDS = 180.0
# Commits between two kills: the back-off of the last view change is gone by then.
SETTLE_COMMITS = 8
WARM_UP = 10
GOALS_MS = {(4, "p50_ms"): 10.0, (4, "p99_ms"): 50.0}
FAILOVER_P95_S = 3.0
# More validators than this on one machine get so many times the usual patience: with all their work
# done by the same few cores, an operation takes longer than a primary is normally waited for.
USUAL_MAX = 16
PATIENCE = 5


class Validator:
    """A worker process and the two pipes to it."""

    def __init__(self, directory: Path, index: int) -> None:
        self.index = index
        command = [sys.executable, "-m", "benchmarks.consensus_worker", str(directory), str(index)]
        with (directory / f"validator{index}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def tell(self, do: str, **values: Any) -> None:
        """Give it a command; the answer is waited for in `hear`."""
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **values}), file=self._process.stdin, flush=True)

    def hear(self) -> Any:
        """Its answer to the oldest command."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"validator {self.index} ended; its log says why")
        return json.loads(line)

    def ask(self, do: str, **values: Any) -> Any:
        """Give it a command and wait for the answer."""
        self.tell(do, **values)
        return self.hear()

    def cpu_seconds(self) -> float:
        """What the process has used so far, in user and kernel mode."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def kill(self) -> float:
        """Kill -9; the moment just before, on the clock that all processes here share."""
        moment = time.monotonic()
        self._process.kill()
        self.close()
        return moment

    def close(self) -> None:
        """End its input, which ends it, and wait."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Mesh:
    """n validators, linked each to each."""

    def __init__(self, directory: Path, n: int) -> None:
        self._directory = directory
        ports = free_ports(n)
        members = {}
        for index in range(n):
            home = directory / f"validator{index}"
            home.mkdir()
            identity = Identity.create(home / "identity.key")
            members[identity.node_id.hex()] = f"127.0.0.1:{ports[index]}"
        self._keys = list(members)
        self._view, self._proposer = 0, ""
        self.timeout_s = ConsensusSettings().base_timeout_s * (1 if n <= USUAL_MAX else PATIENCE)
        spec = {
            "mesh_id": hashlib.sha256(b"benchmark").hexdigest(),
            "members": members,
            "timeout_s": self.timeout_s,
        }
        (directory / "mesh.json").write_text(json.dumps(spec))
        self.validators = [Validator(directory, index) for index in range(n)]
        self.settle()

    @property
    def n(self) -> int:
        return len(self.validators)

    @property
    def faults(self) -> int:
        """f: how many may be away."""
        return (self.n - 1) // 3

    @property
    def view(self) -> int:
        """That of most of them when the mesh had settled; it grows where somebody was too slow."""
        return self._view

    def settle(self) -> None:
        """Wait until all are linked and have the same log, and all but f are in one view.

        Who lost patience alone waits in a later view until f others have as well: views only grow.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            states = [each.ask("state") for each in self.validators]
            here = Counter(s["view"] for s in states if s["active"])
            self._view, together = here.most_common(1)[0] if here else (0, 0)
            same = len({s["executed"] for s in states}) == 1
            if (
                same
                and together >= self.n - self.faults
                and all(s["links"] == self.n - 1 for s in states)
            ):
                self._proposer = next(s["primary"] for s in states if s["view"] == self._view)
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"no settled mesh of {self.n}: {states}")
            time.sleep(0.3)

    def primary(self) -> Validator:
        """Who proposed next when the mesh had settled (the turn passes on every few operations)."""
        return self.validators[self._keys.index(self._proposer)]

    def backup(self) -> Validator:
        """Somebody who does not."""
        others = sorted(set(self._keys) - {self._keys[self.primary().index]})
        return self.validators[self._keys.index(others[0])]

    def cpu_seconds(self) -> float:
        """What all validators have used so far, in user and kernel mode."""
        return sum(each.cpu_seconds() for each in self.validators)

    def restart(self, gone: Validator) -> None:
        """Start a killed validator from its disk."""
        self.validators[gone.index] = Validator(self._directory, gone.index)
        self.settle()

    def close(self) -> None:
        """End all of them."""
        for each in self.validators:
            each.close()


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure_latency(mesh: Mesh, count: int) -> dict[str, Any]:
    """One operation at a time, and what it is made of."""
    submitter = mesh.backup()
    submitter.ask("latency", count=WARM_UP)
    view, before_s = mesh.view, mesh.cpu_seconds()
    pairs = submitter.ask("latency", count=count)
    cpu_ms = 1e3 * (mesh.cpu_seconds() - before_s) / count
    took_ms = [1e3 * (end - begin) for begin, end in pairs]
    mesh.settle()
    parts = submitter.ask("roofline")
    return {
        "measure": "latency",
        "validators": mesh.n,
        "operations": count,
        **{f"p{p}_ms": round(quantile(took_ms, p / 100), 2) for p in (50, 90, 99)},
        "view_changes": mesh.view - view,
        "timeout_s": mesh.timeout_s,
        "cpu_ms": round(cpu_ms, 2),
        "cpu_bound_ms": round(cpu_ms / (os.cpu_count() or 1), 2),
        **{name: round(value, 3) for name, value in parts.items()},
    }


def measure_throughput(mesh: Mesh, count: int) -> dict[str, Any]:
    """Many operations under way at once, all from one backup."""
    seconds = mesh.backup().ask("flood", count=count)
    mesh.settle()
    return {
        "measure": "throughput",
        "validators": mesh.n,
        "operations_per_second": round(1 / seconds, 1),
    }


def measure_failover(mesh: Mesh, kills: int) -> dict[str, Any]:
    """Kill the primary again and again, each time a different one."""
    seconds = []
    for _ in range(kills):
        mesh.backup().ask("latency", count=SETTLE_COMMITS)
        mesh.settle()
        primary, submitter = mesh.primary(), mesh.backup()
        moment = primary.kill()
        ((_, committed),) = submitter.ask("latency", count=1)
        seconds.append(committed - moment)
        mesh.restart(primary)
    return {
        "measure": "failover",
        "validators": mesh.n,
        "kills": kills,
        "p50_s": round(quantile(seconds, 0.5), 3),
        "p95_s": round(quantile(seconds, 0.95), 3),
        "max_s": round(max(seconds), 3),
    }


def missed(line: dict[str, Any]) -> list[str]:
    """Which goals a line misses."""
    found = [
        f"n = {n}: {name} is {line[name]}, more than {goal:g}"
        for (n, name), goal in GOALS_MS.items()
        if line["measure"] == "latency" and line["validators"] == n and line[name] > goal
    ]
    if line["measure"] == "failover" and line["p95_s"] > FAILOVER_P95_S:
        found.append(f"the next commit came {line['p95_s']} s after the primary was killed")
    return found


def main() -> int:
    """Print the lines as they come; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 7, 16, 31])
    parser.add_argument("--operations", type=int, help="of each latency; default: by size")
    parser.add_argument("--quick", action="store_true", help="n = 4 only, few of everything")
    given = parser.parse_args()
    quick = given.quick
    failures = []
    for n in [4] if quick else given.sizes:
        count = given.operations or (100 if quick else max(60, 2000 // n))
        # On the disk that the working directory is on: /tmp may be memory, and its fsync a lie.
        Path("runs").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=Path("runs").resolve()) as directory:
            mesh = Mesh(Path(directory), n)
            try:
                lines = [measure_latency(mesh, count)]
                lines.append(measure_throughput(mesh, 256 if quick else 64 * max(2, 64 // n)))
                if n == 4:
                    lines.append(measure_failover(mesh, 3 if quick else 20))
            finally:
                mesh.close()
        for line in lines:
            load = round(os.getloadavg()[0], 1)
            print(json.dumps({**line, "cpus": os.cpu_count(), "load": load}), flush=True)
            failures += missed(line)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
