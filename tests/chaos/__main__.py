"""python -m tests.chaos --nodes 4 --seconds 600 --seed 1: real nodes, real faults, a judged report.

Uses network namespaces where it may (root, iptables), and TCP proxies on loopback elsewhere; which
faults each has is said at the start. Writes report.json into the directory of the run and exits
with 1 and a line for each requirement that was not met.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from shoal.node.errors import UserError
from tests.chaos import netns
from tests.chaos.proxy import ProxyNetwork
from tests.chaos.run import Plan, run_chaos, summary


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--nodes", type=int, default=4, help="4 to 31")
    parser.add_argument("--seconds", type=float, default=600, help="how long faults are injected")
    parser.add_argument("--seed", type=int, default=1, help="draws the faults")
    parser.add_argument("--network", choices=("auto", "namespaces", "proxies"), default="auto")
    parser.add_argument("--recovery", type=float, default=30, help="seconds to be back in")
    parser.add_argument("--directory", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args()
    # Whoever stops us with SIGTERM gets the same orderly end as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        return _run(given)
    return 130


def _run(given: argparse.Namespace) -> int:
    if given.inside or given.network == "proxies":
        return _run_here(given)
    prefix = f"chaos{os.getpid()}"
    try:
        with netns.made_spaces(prefix, given.nodes) as spaces:
            return netns.run_inside(spaces, prefix, sys.argv[1:])
    except OSError as error:
        if given.network == "namespaces":
            print(f"error: no network namespaces: {error}", file=sys.stderr)
            return 2
        print(f"NO NETWORK NAMESPACES HERE ({error}): proxies instead", file=sys.stderr)
    return _run_here(given)


def _run_here(given: argparse.Namespace) -> int:
    plan = Plan(given.directory.resolve(), given.nodes, given.seconds, given.seed, given.recovery)
    spaces = netns.Spaces(given.inside, given.nodes) if given.inside else None
    kinds = netns.NamespaceNetwork.kinds if spaces else ProxyNetwork.kinds
    print(f"{plan.nodes} nodes, seed {plan.seed}: {', '.join(kinds)}", flush=True)
    try:
        outcome = asyncio.run(run_chaos(plan, spaces, lambda line: print(line, flush=True)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report = {**summary(outcome), "environment": _environment()}
    path = plan.directory / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print_table(report)
    print(f"report: {path}")
    for line in report["problems"]:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if report["problems"] else 0


def print_table(report: dict[str, Any]) -> None:
    """What a person wants to know of a report."""
    audit = report["audit"]
    recovery = ", ".join("never" if s is None else f"{s:.1f}" for s in report["recovery_seconds"])
    rows = [
        ("faults", ", ".join(f"{kind} {count}" for kind, count in report["faults"].items())),
        ("longest time between faults", f"{report['longest_seconds_between_faults']} s"),
        ("commits", report["commits"]),
        ("longest time without commit", f"{report['longest_seconds_without_commit']} s"),
        ("highest view", report["highest_view"]),
        ("starts of each node", report["starts"]),
        ("seconds until each node was back", recovery),
        ("anchors equal at height", report["common_height"]),
        ("votes audited", audit["votes"]),
        ("certificates checked", audit["certificates_checked"]),
        ("double votes", audit["double_votes"]),
        ("diverging decisions", audit["diverging_decisions"]),
    ]
    for name, value in rows:
        print(f"{name:<33} {value}")


def _environment() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "load_average": [round(each, 2) for each in os.getloadavg()],
        "python": platform.python_version(),
        "system": platform.platform(),
    }


if __name__ == "__main__":
    sys.exit(main())
