"""One chaos run from an empty directory to a judged report."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from shoal.node.errors import UserError
from shoal.node.ports import free_ports
from tests.chaos import netns
from tests.chaos.audit import Findings, audit
from tests.chaos.cluster import Cluster, found_nodes
from tests.chaos.inject import Injector
from tests.chaos.network import Network
from tests.chaos.observer import Observer
from tests.chaos.proxy import ProxyNetwork
from tests.chaos.schedule import Fault, draw_schedule

MARKER = "chaos.marker"
START_SECONDS = 180.0
# A mesh that is not back after so long never will be; the limit that is judged is shorter.
GIVE_UP_SECONDS = 180.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    directory: Path
    nodes: int = 4
    seconds: float = 600.0
    seed: int = 1
    # What is judged: how soon all must be back, and how often something new must go wrong.
    recovery_s: float = 30.0
    gap_s: float = 10.0


@dataclass
class Outcome:
    """What happened."""

    plan: Plan
    network: str = ""
    faults: list[Fault] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    first_height: int = 0
    last_height: int = 0
    silence_s: float = 0.0
    # Seconds from the end of the last fault; None for a node that did not come back.
    recovery_s: list[float | None] = field(default_factory=list)
    common_height: int = 0
    views: int = 0
    starts: list[int] = field(default_factory=list)
    complaints: dict[str, int] = field(default_factory=dict)
    findings: Findings | None = None
    problems: list[str] = field(default_factory=list)


async def run_chaos(
    plan: Plan, spaces: netns.Spaces | None, say: Callable[[str], None] = lambda line: None
) -> Outcome:
    """Run it; `spaces` are the network namespaces to use, None means proxies on loopback."""
    claim(plan.directory)
    outcome = Outcome(plan)
    make = _proxied(plan) if spaces is None else _in_namespaces(plan, spaces)
    async with make as (cluster, network):
        outcome.network = "proxies" if spaces is None else "namespaces"
        observer = Observer(cluster.directories, cluster.listen)
        watching = asyncio.create_task(observer.run(), name="observer")
        try:
            for index in range(plan.nodes):
                cluster.start(index)
            say("waiting for the first checkpoint")
            if await _started(cluster, observer, outcome):
                await _suffer(plan, cluster, network, observer, outcome, say)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            outcome.problems += await cluster.stop()
    outcome.problems += observer.problems
    outcome.starts, outcome.complaints = cluster.starts, cluster.complaints()
    say("auditing the captures")
    outcome.findings = await asyncio.to_thread(audit, cluster.directories)
    outcome.problems += outcome.findings.all_problems()
    return outcome


def claim(directory: Path) -> None:
    """Make it an empty directory; raises UserError when it holds something else than a run."""
    if directory.exists():
        if any(directory.iterdir()) and not (directory / MARKER).is_file():
            raise UserError(f"{directory} holds something else; name another directory")
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / MARKER).touch()


@asynccontextmanager
async def _proxied(plan: Plan) -> AsyncIterator[tuple[Cluster, Network]]:
    ports = free_ports(2 * plan.nodes)
    fronts, behind = ports[: plan.nodes], ports[plan.nodes :]
    directories = await asyncio.to_thread(
        found_nodes, plan.directory, nodes=plan.nodes, host="127.0.0.1", ports=fronts
    )
    cluster = Cluster(directories, listen=[f"127.0.0.1:{port}" for port in behind])
    network = ProxyNetwork(plan.seed, cluster.pids)
    await network.start(fronts, behind)
    try:
        yield cluster, network
    finally:
        await network.close()


@asynccontextmanager
async def _in_namespaces(
    plan: Plan, spaces: netns.Spaces
) -> AsyncIterator[tuple[Cluster, Network]]:
    directories = await asyncio.to_thread(
        found_nodes,
        plan.directory,
        nodes=plan.nodes,
        host=netns.HOST_TEMPLATE,
        ports=[netns.PORT] * plan.nodes,
    )
    cluster = Cluster(
        directories,
        listen=[f"{netns.node_host(index)}:{netns.PORT}" for index in range(plan.nodes)],
        prefix=spaces.inside,
    )
    network = netns.NamespaceNetwork(spaces)
    try:
        yield cluster, network
    finally:
        await network.close()


async def _started(cluster: Cluster, observer: Observer, outcome: Outcome) -> bool:
    """Wait until all are linked and have committed once; False when that does not happen."""
    nodes = range(len(cluster.directories))
    deadline = time.monotonic() + START_SECONDS
    while not all(observer.is_whole(index, above=0) for index in nodes):
        outcome.problems += list(cluster.deaths())
        if time.monotonic() > deadline:
            outcome.problems.append(f"no healthy mesh within {START_SECONDS:.0f} s")
        if outcome.problems:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def _suffer(
    plan: Plan,
    cluster: Cluster,
    network: Network,
    observer: Observer,
    outcome: Outcome,
    say: Callable[[str], None],
) -> None:
    """Inject every fault, then measure how long each node takes to come back."""
    faults = draw_schedule(plan.seed, nodes=plan.nodes, seconds=plan.seconds, kinds=network.kinds)
    injector = Injector(cluster, network, say)
    began, outcome.faults, outcome.first_height = time.monotonic(), faults, observer.height
    injecting = asyncio.create_task(injector.run(faults), name="faults")
    while not injecting.done():
        outcome.problems += list(cluster.deaths())
        if outcome.problems:
            injecting.cancel()
        await asyncio.wait((injecting,), timeout=POLL_S)
    outcome.began = injector.began
    if not injecting.cancelled():
        injecting.result()
        say("all faults are over")
        await _recover(plan, cluster, observer, outcome)
    outcome.last_height = observer.height
    outcome.silence_s = observer.longest_silence(began, time.monotonic())
    outcome.views = max((s.reply.consensus.view for s in observer.sights if s.reply), default=0)


async def _recover(plan: Plan, cluster: Cluster, observer: Observer, outcome: Outcome) -> None:
    ended, above = time.monotonic(), observer.height
    back: list[float | None] = [None] * plan.nodes
    while time.monotonic() - ended < GIVE_UP_SECONDS and not list(cluster.deaths()):
        for index in range(plan.nodes):
            if back[index] is None and observer.is_whole(index, above=above):
                back[index] = time.monotonic() - ended
        outcome.common_height = observer.common_root(above=above)
        if outcome.common_height and None not in back:
            break
        await asyncio.sleep(POLL_S)
    outcome.recovery_s = back
    for index, seconds in enumerate(back):
        if seconds is None or seconds > plan.recovery_s:
            took = "not at all" if seconds is None else f"after {seconds:.1f} s"
            outcome.problems.append(
                f"{cluster.name(index)} was back {took}, not within {plan.recovery_s:.0f} s"
            )
    if not outcome.common_height:
        outcome.problems.append(f"no height above {above} at which all anchors are equal")


def summary(outcome: Outcome) -> dict[str, Any]:
    """The whole outcome as plain values."""
    kinds: dict[str, int] = {}
    for fault in outcome.faults:
        kinds[fault.kind] = kinds.get(fault.kind, 0) + 1
    gaps = [later - sooner for sooner, later in pairwise(outcome.began)]
    return {
        "nodes": outcome.plan.nodes,
        "seconds": outcome.plan.seconds,
        "seed": outcome.plan.seed,
        "network": outcome.network,
        "faults": dict(sorted(kinds.items())),
        "longest_seconds_between_faults": round(max(gaps, default=0.0), 2),
        "commits": outcome.last_height - outcome.first_height,
        "longest_seconds_without_commit": round(outcome.silence_s, 1),
        "recovery_limit_seconds": outcome.plan.recovery_s,
        "recovery_seconds": [s and round(s, 1) for s in outcome.recovery_s],
        "common_height": outcome.common_height,
        "highest_view": outcome.views,
        "starts": outcome.starts,
        "errors_logged": outcome.complaints,
        "audit": outcome.findings.summary() if outcome.findings else {},
        "schedule": [str(fault) for fault in outcome.faults],
        "problems": judge(outcome, gaps),
    }


def judge(outcome: Outcome, gaps: list[float]) -> list[str]:
    """One line for each requirement that was not met."""
    problems = list(dict.fromkeys(outcome.problems))
    if max(gaps, default=0.0) > outcome.plan.gap_s:
        problems.append(f"{max(gaps):.1f} s passed without a new fault")
    if outcome.last_height <= outcome.first_height:
        problems.append("nothing was committed while there were faults")
    if outcome.complaints:
        problems.append(f"the nodes logged errors: {outcome.complaints}")
    return problems
