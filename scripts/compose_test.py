"""Run docker-compose.yml for real: four containers commit, one dies and returns, a fifth joins.

The compose file and the Dockerfile are used as they are committed. An override file made here
only says where this machine keeps what they need: the base image, the package index, free ports.
container_engine.py finds or makes the engine and the base image; where it cannot, one loud line
says so and the test counts as skipped. Needs nothing but the standard library.
"""

import json
import os
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from container_engine import (
    Failed,
    Skipped,
    build_arguments,
    find_base,
    find_compose,
    find_engine,
    run,
    say,
)

NODES = ("node0", "node1", "node2", "node3")
# Joins by address in a container of its own, which compose knows nothing of.
FIFTH = "fifth"
QUORUM = 3
IMAGE = "shoal-compose-test/node"
PROJECT = "shoal-compose-test"

# What one node reports: height -> (anchor root in hex, number of signatures).
Checkpoints = dict[int, tuple[str, int]]


def wait_until(what: str, ready: Callable[[], bool], *, timeout_s: float) -> None:
    """Ask every two seconds; raises Failed when the time is up."""
    begun = time.monotonic()
    while not ready():
        if time.monotonic() - begun > timeout_s:
            raise Failed(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(2)
    say(f"{what}: after {time.monotonic() - begun:.1f} s")


def override(arguments: Mapping[str, str]) -> str:
    """Return the compose file that adapts the committed one to this test; JSON is YAML."""
    services: dict[str, object] = {name: {"image": IMAGE} for name in NODES}
    services["genesis"] = {"image": IMAGE, "build": {"args": dict(arguments)}}
    return json.dumps({"services": services}, indent=1)


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on at this moment."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]


class Mesh:
    """The containers of docker-compose.yml, and what is asked of them."""

    def __init__(self, compose: Sequence[str], override_file: Path) -> None:
        files = ("--file", "docker-compose.yml", "--file", str(override_file))
        self._compose = (*compose, "--project-name", PROJECT, *files)
        self.ports = dict(zip(NODES, free_ports(len(NODES)), strict=True))
        self.containers: dict[str, str] = {}
        for name, port in self.ports.items():
            os.environ[f"{name.upper()}_PORT"] = str(port)

    def compose(self, *arguments: str, timeout_s: float = 120, show: bool = False) -> str:
        """Run one compose command."""
        return run(*self._compose, *arguments, timeout_s=timeout_s, show=show)

    def start(self) -> None:
        """Start every service, and remember the nodes' containers."""
        self.compose("up", "--detach", timeout_s=300)
        self.containers = {name: self.compose("ps", "--quiet", name).strip() for name in NODES}

    def join_fifth(self) -> None:
        """Start a newcomer with what a person would give it: a member's line and address."""
        line = self.inside(NODES[0], "shoal", "invite", "/data").splitlines()[0]
        place = ("--network", f"{PROJECT}_default", "--network-alias", FIFTH)
        words = ("join", f"{NODES[0]}:7500", "--token", line, "--dir", "/data")
        words += ("--listen", "0.0.0.0:7400", "--advertise", f"{FIFTH}:7400")
        started = run("docker", "run", "--detach", "--init", *place, IMAGE, *words)
        self.containers[FIFTH] = started.strip()

    def remove_fifth(self) -> None:
        """Take its container away, if there is one."""
        if container := self.containers.pop(FIFTH, ""):
            run("docker", "rm", "--force", "--volumes", container)

    def seen_from_fifth(self, name: str) -> dict[str, Any]:
        """Ask a node over its members' port, from another container, by what makes one a member."""
        node_id = json.loads(self.inside(name, "shoal", "status", "--json"))["node_id"]
        target = f"{node_id}@{name}:7400"
        reply = self.inside(FIFTH, "shoal", "status", target, "--as", "/data", "--json")
        seen: dict[str, Any] = json.loads(reply)
        return seen

    def inside(self, name: str, *command: str) -> str:
        """Run a command in a node's container."""
        return run("docker", "exec", self.containers[name], *command)

    def state(self, name: str, field: str) -> str:
        """Return one field of a container's state, such as Health.Status."""
        container = self.containers[name]
        return run("docker", "inspect", f"--format={{{{.State.{field}}}}}", container).strip()

    def healthy(self, names: Sequence[str] = NODES) -> bool:
        """Whether the health checks of the containers pass; raises Failed for one that ended."""
        for name in names:
            if self.state(name, "Running") != "true":
                raise Failed(f"{name} ended with exit code {self.state(name, 'ExitCode')}")
        return all(self.state(name, "Health.Status") == "healthy" for name in names)

    def checkpoints(self, name: str) -> Checkpoints:
        """Ask a node, in its container, for the checkpoints whose anchor it has rebuilt itself.

        A node that does not answer has none.
        """
        try:
            reply = json.loads(self.inside(name, "shoal", "status", "--json"))
        except (Failed, ValueError):
            return {}
        return {
            int(entry["height"]): (str(entry["root"]), int(entry["signatures"]))
            for entry in reply["checkpoints"]
            if entry["materialised"]
        }

    def common(self, names: Sequence[str], *, above: int = 0) -> int:
        """Return the newest height above `above` that all nodes certified alike, or 0.

        Raises Failed where two nodes have different roots, or a certificate has too few signatures.
        """
        held = [self.checkpoints(name) for name in names]
        for height in sorted(set.intersection(*(set(one) for one in held)), reverse=True):
            if len({one[height][0] for one in held}) > 1:
                raise Failed(f"anchor roots differ at height {height}: {held}")
            if any(one[height][1] < QUORUM for one in held):
                raise Failed(f"fewer than {QUORUM} signatures at height {height}: {held}")
            return height if height > above else 0
        return 0


def serves_http2(port: int) -> bool:
    """Whether a server of HTTP/2 over TLS 1.3 answers behind a published port.

    It would hang up on this client afterwards, which shows no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        context.wrap_socket(connection) as secured,
    ):
        return (secured.version(), secured.selected_alpn_protocol()) == ("TLSv1.3", "h2")


def exercise(mesh: Mesh) -> None:
    """Bring the mesh up and see that it commits, also with one node killed, who then catches up."""
    mesh.start()
    wait_until("four health checks pass", mesh.healthy, timeout_s=600)
    for name, port in mesh.ports.items():
        if not serves_http2(port):
            raise Failed(f"no gRPC server answers behind the published port of {name}")
    if mesh.inside("node0", "id", "-u").strip() == "0":
        raise Failed("the nodes run as root")
    alike = "four nodes certify two anchors alike"
    wait_until(alike, lambda: mesh.common(NODES, above=1) > 0, timeout_s=600)

    killed, others = NODES[3], NODES[:3]
    before = mesh.common(others)
    run("docker", "kill", "--signal", "SIGKILL", mesh.containers[killed])
    say(f"killed {killed} at height {before}")
    # One checkpoint may have been under way; the second one is the three's own work.
    onwards = "the other three commit two more"
    wait_until(onwards, lambda: mesh.common(others, above=before + 1) > 0, timeout_s=600)
    if mesh.state(killed, "Running") == "true":
        raise Failed(f"{killed} runs though it was killed")

    after = mesh.common(others)
    run("docker", "start", mesh.containers[killed])
    again = f"{killed} is back and has what was committed without it"
    wait_until(again, lambda: mesh.common(NODES, above=after - 1) > 0, timeout_s=600)
    wait_until("four health checks pass again", mesh.healthy, timeout_s=600)

    mesh.join_fifth()
    five = (*NODES, FIFTH)
    joined = "a fifth has joined by address and has what the four certify"
    wait_until(joined, lambda: mesh.common(five, above=after) > 0, timeout_s=600)
    seen = mesh.seen_from_fifth(NODES[0])
    if seen["node"] != NODES[0] or seen["consensus"]["members"] != len(five):
        raise Failed(f"what a member sees of {NODES[0]} over gRPC is not its state: {seen}")
    say(f"{NODES[0]} answers the fifth over gRPC: {len(five)} members")
    mesh.remove_fifth()

    mesh.compose("stop", timeout_s=200)
    codes = {name: mesh.state(name, "ExitCode") for name in NODES}
    if set(codes.values()) != {"0"}:
        raise Failed(f"nodes that were told to stop did not end well: {codes}")
    say("all four ended cleanly when told to stop")
    mesh.start()
    kept = "up again, it is the same mesh with the checkpoints it had"
    wait_until(kept, lambda: mesh.common(NODES, above=after - 1) > 0, timeout_s=600)


def test(stack: ExitStack) -> None:
    """Find or make what is missing, then run the mesh; raises Skipped or Failed."""
    find_engine(stack)
    compose = find_compose()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-compose-")))
    override_file = folder / "override.json"
    override_file.write_text(override(build_arguments(find_base())))
    mesh = Mesh(compose, override_file)
    mesh.compose("build", "genesis", timeout_s=1800, show=True)
    size = int(run("docker", "image", "inspect", "--format={{.Size}}", IMAGE))
    say(f"built the image: {size / 1e6:.0f} MB")
    stack.callback(mesh.compose, "down", "--volumes", "--timeout", "20", timeout_s=200)
    # Before the network that it hangs on.
    stack.callback(mesh.remove_fifth)
    try:
        exercise(mesh)
    except Failed:
        mesh.compose("logs", "--tail", "40", show=True)
        raise


def stop_on_signal(number: int, _frame: FrameType | None) -> None:
    """Leave through the same door as always, so that nothing is left running."""
    sys.exit(128 + number)


def main() -> int:
    """Return 0 for passed and skipped, 1 for failed."""
    signal.signal(signal.SIGTERM, stop_on_signal)
    try:
        with ExitStack() as stack:
            test(stack)
    except Skipped as reason:
        print(f"*** SKIPPED: compose-test did not run: {reason} ***", flush=True)
        return 0
    except Failed as reason:
        print(f"FAILED: {reason}", file=sys.stderr, flush=True)
        return 1
    say("PASS: four containers committed, lost one, went on, it caught up, and a fifth joined")
    return 0


if __name__ == "__main__":
    sys.exit(main())
