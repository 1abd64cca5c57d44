"""A network of namespaces: real packets are lost, real TCP retransmits. Needs root and iptables.

Each node lives in a network namespace of its own; a veth pair leads to a bridge in a namespace of
the run's, where the run itself lives too. So nothing of the machine's own network is touched, and
everything is gone with the namespaces. Partitions and loss are rules on the receiver's side, rate
limits a token bucket on the sender's. This kernel may have no netem: delay is the proxy's.
"""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos.network import Condition
from tests.chaos.schedule import Pair

PORT = 7400
HOST_TEMPLATE = "10.77.0.1{index}"
_HUB_ADDRESS = "10.77.0.1/16"
_BURST = "16kb"
# What waits longer than this before a slow link is dropped, as a router's queue would.
_QUEUE = "500ms"


def node_host(index: int) -> str:
    """The address of a node."""
    return HOST_TEMPLATE.format(index=index)


def _run(*words: str, text: str | None = None) -> None:
    subprocess.run(words, input=text, check=True, capture_output=True, text=True, timeout=30)


class Spaces:
    """The namespaces of one run, by name."""

    def __init__(self, prefix: str, nodes: int) -> None:
        self.hub = f"{prefix}-hub"
        self.nodes = [f"{prefix}-n{index}" for index in range(nodes)]

    def inside(self, index: int) -> list[str]:
        """What to put before a command so that it runs where the node lives."""
        return ["ip", "netns", "exec", self.nodes[index]]


@contextmanager
def made_spaces(prefix: str, nodes: int) -> Iterator[Spaces]:
    """Make the namespaces and the wires between them; raises OSError where that is refused."""
    spaces = Spaces(prefix, nodes)
    if not all(map(shutil.which, ("ip", "tc", "iptables", "iptables-restore"))):
        raise OSError("ip, tc and iptables are not all installed")
    made: list[str] = []
    try:
        try:
            for name in (spaces.hub, *spaces.nodes):
                _run("ip", "netns", "add", name)
                made.append(name)
            _wire(spaces)
            _try_faults(spaces)
        except subprocess.CalledProcessError as error:
            raise OSError(f"{' '.join(error.cmd)}: {error.stderr.strip()}") from None
        yield spaces
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False, timeout=30)


def _wire(spaces: Spaces) -> None:
    hub = ["ip", "-n", spaces.hub]
    _run(*hub, "link", "add", "bridge", "type", "bridge")
    _run(*hub, "address", "add", _HUB_ADDRESS, "dev", "bridge")
    _run(*hub, "link", "set", "lo", "up")
    _run(*hub, "link", "set", "bridge", "up")
    for index, name in enumerate(spaces.nodes):
        port = f"port{index}"
        peer = ["peer", "name", "eth0", "netns", name]
        _run(*hub, "link", "add", port, "type", "veth", *peer)
        _run(*hub, "link", "set", port, "master", "bridge", "up")
        inside = ["ip", "-n", name]
        _run(*inside, "address", "add", f"{node_host(index)}/16", "dev", "eth0")
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "link", "set", "eth0", "up")


def _try_faults(spaces: Spaces) -> None:
    """Find out now, not in the middle of a run, what this kernel refuses."""
    _run(*spaces.inside(0), "iptables-restore", text=filter_rules({1: Condition(loss=0.5)}))
    _run(*spaces.inside(0), "iptables-restore", text=filter_rules({}))
    _run(*spaces.inside(0), *_bucket(1000.0))
    _run(*spaces.inside(0), *_NO_BUCKET)


def filter_rules(sources: dict[int, Condition]) -> str:
    """A whole filter table for one receiver, given what each of its sources suffers."""
    lines = ["*filter", ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]"]
    for source, condition in sorted(sources.items()):
        rule = f"-A INPUT -s {node_host(source)}"
        if condition.blocked:
            lines.append(f"{rule} -j DROP")
        elif condition.loss:
            chance = f"-m statistic --mode random --probability {condition.loss:.4f}"
            lines.append(f"{rule} {chance} -j DROP")
    return "\n".join([*lines, "COMMIT", ""])


def _bucket(rate: float) -> list[str]:
    bits = f"{int(rate * 8)}bit"
    root = ["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf"]
    return [*root, "rate", bits, "burst", _BURST, "latency", _QUEUE]


_NO_BUCKET = ["tc", "qdisc", "delete", "dev", "eth0", "root"]


class NamespaceNetwork:
    """Applies conditions inside the namespaces; whoever made those takes them away."""

    kinds: tuple[str, ...] = ("kill", "pause", "partition", "one-way", "loss", "rate")

    def __init__(self, spaces: Spaces) -> None:
        self._spaces = spaces
        self._rules: dict[int, str] = {}
        self._rates: dict[int, float] = {}

    async def apply(self, conditions: dict[Pair, Condition]) -> None:
        """Make these the conditions of all links."""
        await asyncio.to_thread(self._apply, conditions)

    def _apply(self, conditions: dict[Pair, Condition]) -> None:
        for node in range(len(self._spaces.nodes)):
            rules = filter_rules({s: c for (s, target), c in conditions.items() if target == node})
            if self._rules.get(node, filter_rules({})) != rules:
                _run(*self._spaces.inside(node), "iptables-restore", text=rules)
                self._rules[node] = rules
            limits = [c.rate for (s, _), c in conditions.items() if s == node and c.rate]
            rate = min(limits, default=0.0)
            if self._rates.get(node, 0.0) != rate:
                _run(*self._spaces.inside(node), *(_bucket(rate) if rate else _NO_BUCKET))
                self._rates[node] = rate

    async def close(self) -> None:
        """Let everything through again."""
        await self.apply({})


def run_inside(spaces: Spaces, prefix: str, arguments: list[str]) -> int:
    """Run this very command again where it can reach the nodes; returns its exit code."""
    command = ["ip", "netns", "exec", spaces.hub, sys.executable, "-m", "tests.chaos"]
    # A session of its own: Ctrl-C reaches us alone, and it is told once.
    process = subprocess.Popen([*command, *arguments, "--inside", prefix], start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        # It ends its nodes in order before it goes.
        process.terminate()
        process.wait()
        raise
