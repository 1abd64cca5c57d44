"""What one hostile member costs the others: JSON lines.

    python -m benchmarks.flood --seconds 60

Four members, each a process of its own on this machine: three train, the fourth attacks all of them
as fast as loopback takes it. Each kind of attack has a quiet phase of half its length before and
after it, with the same processes, so that what else the machine does, and how far the three have
come, weighs on both alike; a line gives the tokens a second that the three trained, and how large
the largest of them was.

    frames     valid frames over its links: questions, announcements, summaries, pings
    calls      requests, joins and handshakes from connections of its own, as a member and as
               a newcomer
    garbage    what no honest member sends, over its links and over new ones

The attacker runs on the same processors as the others, at the lowest priority so that what it
costs them is what they do about it and not what it computes.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import psutil

from shoal.consensus.messages import Status, encode
from shoal.node.addresses import JOIN_PORT_ABOVE, port_above
from shoal.node.certificates import issue_leaf
from shoal.node.channels import open_channel
from shoal.node.config import load_settings
from shoal.node.wire import Announced, ConsensusMessages, LinkMessage, Ping, SummaryMessage
from shoal.proto import mesh_pb2
from shoal.proto.mesh_pb2_grpc import MeshStub
from tests.abuse.hostile import Hostile, hostile_member
from tests.integration.processes import Process, run_node, status, wait_until
from tests.node.mesh import found_mesh

# An id, where it listens, and whether a leaf is shown there.
Target: TypeAlias = tuple[bytes, str, bool]
QUESTION = encode(Status(0, 0, 0, True, 0, 0, 0, b"", (), 255))
PARALLEL = 16
WARM_UP_S = 5.0
AUTOGROUP = Path("/proc/self/autogroup")


def _frames(evil: Hostile, number: int) -> list[LinkMessage]:
    """Some valid frames, none of which is a reason to end the link."""
    me = evil.identity.node_id
    names = tuple((me, 1 + number * 64 + k, os.urandom(32)) for k in range(64))
    return [
        ConsensusMessages((QUESTION,) * 64),
        Announced(names),
        SummaryMessage(1, {me: (1, b"\xff" * 128)}),
        Ping(number),
    ]


def _garbage(evil: Hostile, number: int) -> list[LinkMessage]:
    del evil, number
    return [ConsensusMessages((os.urandom(200),) * 64), Announced(((bytes(31), 1, bytes(32)),))]


async def _over_links(
    evil: Hostile, victims: list[bytes], make: Callable[[Hostile, int], list[LinkMessage]]
) -> None:
    number = 0
    while True:
        for victim in victims:
            for link in evil.links._links.get(victim, ()):
                # What has not left yet would only be dropped.
                if len(link.lanes._gossip) < 256 and len(link.lanes._consensus) < 2048:
                    for message in make(evil, number):
                        link.lanes.put(message)
                    number += 1
        await asyncio.sleep(0)


async def _calls(evil: Hostile, targets: list[Target]) -> None:
    leaf = issue_leaf(evil.identity, time.time())

    async def again(call: Callable[[Any], Awaitable[object]], target: Target) -> None:
        peer, address, as_member = target
        async with open_channel(address, peer, leaf if as_member else None) as channel:
            stub = MeshStub(channel)
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await call(stub)

    async def fetch(stub: Any) -> None:
        async for _ in stub.Fetch(mesh_pb2.FetchRequest(mesh_id=evil.mesh_id, describe=0)):
            pass

    async def join(stub: Any) -> None:
        await stub.Join(mesh_pb2.JoinRequest(operation=b"\x02" + os.urandom(120)))

    async def greet(stub: Any) -> None:
        call = stub.Link()
        await call.write(mesh_pb2.LinkFrame(ping=mesh_pb2.Ping(stamp=1)))
        while await call.read() is not grpc.aio.EOF:
            pass

    async def connect(target: Target) -> None:
        """Begin one TLS connection after the other."""
        peer, address, as_member = target
        while True:
            async with open_channel(address, peer, leaf if as_member else None) as channel:
                with suppress(TimeoutError):
                    await asyncio.wait_for(channel.channel_ready(), 1)

    calls = (fetch, join, greet)
    async with asyncio.TaskGroup() as group:
        for target in targets:
            group.create_task(connect(target))
            for number in range(PARALLEL):
                group.create_task(again(calls[number % len(calls)], target))


def _stand_back() -> None:
    """Take what the others leave. Where sessions are scheduled as groups, `nice` counts inside a
    group alone, and each node is one of its own."""
    os.nice(19)
    os.setsid()
    with suppress(OSError):
        AUTOGROUP.write_text("19")


async def attack(kind: str, directory: Path, seconds: float) -> None:
    """Be the hostile member for a while."""
    async with hostile_member(directory) as evil:
        others = {
            founder.node_id: founder.address
            for founder in evil.genesis_document.founders
            if founder.node_id != evil.identity.node_id
        }
        victims = list(others)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if kind == "frames":
                    await _over_links(evil, victims, _frames)
                elif kind == "garbage":
                    await _over_links(evil, victims, _garbage)
                else:
                    joins = [port_above(each, JOIN_PORT_ABOVE) for each in others.values()]
                    members = [(peer, address, True) for peer, address in others.items()]
                    newcomers = [(peer, at, False) for peer, at in zip(others, joins, strict=True)]
                    await _calls(evil, [*members, *newcomers])


def _received_mib(addresses: list[str]) -> float:
    """What the three have been sent over their links, the attacker's and each other's."""
    replies = [status(address) for address in addresses]
    return sum(sum(reply.received_bytes.values()) for reply in replies if reply) / 2**20


def _tokens(addresses: list[str]) -> int:
    replies = [status(address) for address in addresses]
    assert None not in replies, "a node does not answer"
    return sum(reply.training.tokens for reply in replies if reply is not None)


def _resident_mib(nodes: list[Process]) -> float:
    return max(psutil.Process(node.pid).memory_info().rss for node in nodes) / 2**20


def _watch(nodes: list[Process], addresses: list[str], seconds: float) -> dict[str, float]:
    """Tokens a second of all of them together, and the largest that one of them was."""
    began, started = _tokens(addresses), time.monotonic()
    largest = 0.0
    while time.monotonic() - started < seconds:
        largest = max(largest, _resident_mib(nodes))
        time.sleep(0.25)
    trained, took_s = _tokens(addresses) - began, time.monotonic() - started
    return {"tokens_per_s": round(trained / took_s, 1), "resident_mib": round(largest, 1)}


def _height(addresses: list[str]) -> int:
    reply = status(addresses[0])
    assert reply is not None
    return max((checkpoint.height for checkpoint in reply.checkpoints), default=0)


def measure(kinds: list[str], seconds: float) -> None:
    """Run the mesh; print a line for each kind of attack."""
    with tempfile.TemporaryDirectory() as directory:
        directories = found_mesh(Path(directory), local_steps=8, rounds_per_checkpoint=8)
        addresses = [load_settings(each).node.inspect_listen for each in directories[:3]]
        nodes = [run_node(each) for each in directories[:3]]
        try:
            wait_until(lambda: all(status(a) for a in addresses), nodes)
            wait_until(lambda: _height(addresses) >= 1, nodes, seconds=300)
            time.sleep(WARM_UP_S)
            for kind in kinds:
                before = _watch(nodes, addresses, seconds / 2)
                height, before_mib = _height(addresses), _received_mib(addresses)
                attacker = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "benchmarks.flood", "--attack", kind),
                        *("--seconds", str(seconds + 5), "--directory", str(directories[3])),
                    ],
                    stdout=subprocess.DEVNULL,
                )
                time.sleep(5)
                flooded = _watch(nodes, addresses, seconds)
                checkpoints = _height(addresses) - height
                received_mib = _received_mib(addresses) - before_mib
                cpu = psutil.Process(attacker.pid).cpu_times()
                # It gets what the others leave, so it may be slow to notice that its time is up.
                attacker.kill()
                attacker.wait()
                after = _watch(nodes, addresses, seconds / 2)
                quiet = round((before["tokens_per_s"] + after["tokens_per_s"]) / 2, 1)
                line = {
                    "attack": kind,
                    "seconds": seconds,
                    "before": before,
                    "flooded": flooded,
                    "after": after,
                    "throughput": round(flooded["tokens_per_s"] / quiet, 3),
                    "growth_mib": round(flooded["resident_mib"] - before["resident_mib"], 1),
                    "checkpoints_meanwhile": checkpoints,
                    "attacker_cpu_s": round(cpu.user + cpu.system, 1),
                    "received_mib": round(received_mib, 1),
                }
                print(json.dumps(line), flush=True)
        finally:
            for node in nodes:
                node.stop()


def main() -> None:
    """Read the arguments, then measure, or attack."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=60.0)
    arguments.add_argument("--kinds", default="frames,calls,garbage")
    arguments.add_argument("--attack", help=argparse.SUPPRESS)
    arguments.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.attack:
        _stand_back()
        asyncio.run(attack(given.attack, given.directory, given.seconds))
    else:
        measure(given.kinds.split(","), given.seconds)


if __name__ == "__main__":
    main()
