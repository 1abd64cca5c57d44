"""How soon the dead are noticed, and how often the living are called dead: JSON lines.

    python -m benchmarks.detector deaths      the real detector on a simulated network, up to 100
    python -m benchmarks.detector troubles    the same, where nobody dies
    python -m benchmarks.detector real        four real processes on this machine: kill -9 and
                                              SIGSTOP again and again, then five minutes with one
                                              event loop blocked 2 s every 10 s

"noticed" is the verdict "dead" at another member, not the suspicion before it. In the simulation
all judges count, with and without a link to the victim; real times are those of the log lines.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from shoal.gossip.liveness import State
from tests.gossip.simulated_eyes import Sky, Weather
from tests.integration.watching import WatchedMesh

SIZES = (2, 3, 4, 8, 16, 31, 60, 100)
WAN = Weather(loss=0.02, latency_s=(0.02, 0.15))
STALL_S, STALL_EVERY_S = 2.0, 10.0


def spread(times: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum, in seconds."""
    if not times:
        return {}
    high = quantiles(times, n=20, method="inclusive")[-1] if len(times) > 1 else times[0]
    return {
        "p50_s": round(median(times), 2),
        "p95_s": round(high, 2),
        "max_s": round(max(times), 2),
    }


def deaths(size: int, how: str, weather: Weather, seeds: int) -> dict[str, Any]:
    """One member dies; how long until each of the others knows, over all seeds."""
    times: list[float] = []
    missed = false = 0
    rate = 0.0
    for seed in range(seeds):
        sky = Sky(size, seed, weather=weather)
        sky.run(20)
        # In large meshes the first ones vote, so everybody has a link to them; the last do not.
        victim = sky.names[seed % size if seed % 2 else -1 - seed % size]
        since = sky.now
        rate += sky.messages / sky.now / size / seeds
        getattr(sky, how)(victim)
        sky.run(15)
        found = sky.took_for_dead(victim, since=since)
        found.pop(victim, None)
        times += [at - since for at in found.values()]
        missed += size - 1 - len(found)
        false += sum(
            verdict.state is State.DEAD and victim not in (verdict.subject, verdict.judge)
            for verdict in sky.verdicts
        )
    return {"messages_per_s": round(rate, 1), **spread(times), "missed": missed, "false": false}


def _stall_one(sky: Sky) -> None:
    sky.stall_often(sky.names[1], seconds=STALL_S, every_s=STALL_EVERY_S)


def _stall_all(sky: Sky) -> None:
    for name in sky.names:
        sky.stall_often(name, seconds=STALL_S, every_s=STALL_EVERY_S)


def _lie(sky: Sky) -> None:
    for name in sky.names[: (len(sky.names) - 1) // 3]:
        sky.hosts[name].liar = True


def _one_way(sky: Sky) -> None:
    sky.block(sky.names[:1], sky.names[1:2])
    sky.block(sky.names[2:3], sky.names[3:4])


TROUBLES: dict[str, tuple[Weather, tuple[Callable[[Sky], None], ...]]] = {
    "quiet": (Weather(), ()),
    "one stalls 2 s every 10 s": (Weather(), (_stall_one,)),
    "all stall 2 s every 10 s": (Weather(), (_stall_all,)),
    "f liars accuse everybody": (Weather(), (_lie,)),
    "two lines broken one way": (Weather(), (_one_way,)),
    "liars, a staller, broken lines": (Weather(), (_lie, _stall_one, _one_way)),
    "10 % loss, 20 to 300 ms": (Weather(0.1, (0.01, 0.15)), ()),
    "20 % loss, 20 to 300 ms": (Weather(0.2, (0.01, 0.15)), ()),
}


def life(size: int, name: str, seconds: float, seeds: int) -> dict[str, Any]:
    """Nobody dies; how often somebody is suspected, and called dead."""
    weather, troubles = TROUBLES[name]
    suspicions = false = 0
    for seed in range(seeds):
        sky = Sky(size, seed, weather=weather)
        sky.run(8)
        sky.verdicts.clear()
        for trouble in troubles:
            trouble(sky)
        sky.run(seconds)
        suspicions += sum(verdict.state is State.SUSPECT for verdict in sky.verdicts)
        false += len(sky.false_deaths())
    return {
        "hours": round(size * seconds * seeds / 3600, 1),
        "suspicions": suspicions,
        "false": false,
    }


def all_deaths(seeds: int) -> Iterator[dict[str, Any]]:
    """Every size and kind of death."""
    for where, weather in (("lan", Weather()), ("wan", WAN)):
        for size in SIZES:
            runs = seeds if size < 60 else max(1, seeds // 4)
            for how in ("kill", "cut_off"):
                yield {"net": where, "n": size, "how": how, **deaths(size, how, weather, runs)}


def all_troubles(seeds: int) -> Iterator[dict[str, Any]]:
    """Every kind of trouble."""
    for name in TROUBLES:
        for size in (4, 10):
            yield {"trouble": name, "n": size, **life(size, name, 120, seeds)}


def real(repeats: int, stall_s: float, *, train: bool) -> Iterator[dict[str, Any]]:
    """Four processes, on this machine as it is now.

    Under `nice -n 19` training cannot stand further back than the nodes do; then do without it.
    """
    extra = () if train else ("train.enabled=false",)
    with tempfile.TemporaryDirectory() as directory:
        mesh = WatchedMesh(Path(directory) / "mesh", extra=extra)
        try:
            mesh.settle()
            silent: list[float] = []
            killed: list[float] = []
            for _ in range(repeats):
                silent += mesh.freeze()
                mesh.settle()
                killed += mesh.kill()
                mesh.restart()
            expected = len(silent) + len(killed)
            for how, times in (("SIGSTOP", silent), ("kill -9", killed)):
                yield {"how": how, "n": 4, "samples": len(times), **spread(times), **_machine()}
            yield {"how": "deaths beyond those", "count": mesh.deaths() - expected}
        finally:
            mesh.close()
    if not stall_s:
        return
    with tempfile.TemporaryDirectory() as directory:
        mesh = WatchedMesh(Path(directory) / "mesh", stall=(STALL_S, STALL_EVERY_S), extra=extra)
        try:
            end = time.monotonic() + stall_s
            loads = []
            while time.monotonic() < end:
                time.sleep(min(10.0, max(0.1, end - time.monotonic())))
                loads.append(os.getloadavg()[0])
            yield {
                "how": f"event loop of one of 4 blocked {STALL_S:g} s every {STALL_EVERY_S:g} s",
                "seconds": stall_s,
                "suspicions": mesh.suspicions(),
                "false_deaths": mesh.deaths(),
                "load_max": round(max(loads), 1),
            }
        finally:
            mesh.close()


def _machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("deaths", "troubles", "real"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--stall-seconds", type=float, default=300.0)
    parser.add_argument("--no-training", action="store_true", help="of the meshes of `real`")
    given = parser.parse_args()
    if given.what == "real":
        found = real(given.repeats, given.stall_seconds, train=not given.no_training)
    else:
        found = (all_deaths if given.what == "deaths" else all_troubles)(given.seeds)
    for line in found:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
