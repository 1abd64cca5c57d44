"""Watches the nodes of a chaos run through Inspect, as `shoal status` does, and remembers when
what was seen."""

import asyncio
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import grpc

from shoal.node.backup import KEY_NAME
from shoal.node.channels import own_channel
from shoal.node.identity import Identity
from shoal.proto.inspect_pb2 import StatusReply, StatusRequest
from shoal.proto.inspect_pb2_grpc import InspectStub

INTERVAL_S = 0.25
# Longer than a busy machine needs, shorter than any fault: a stopped process does not answer.
ANSWER_S = 2.0


@dataclass
class Sight:
    """What was last seen of one node."""

    reply: StatusReply | None = None
    seen_at: float = 0.0
    # When it first had rebuilt each height, and with which root.
    heights: dict[int, float] = field(default_factory=dict)
    roots: dict[int, str] = field(default_factory=dict)


class Observer:
    """Asks every node again and again until it is told to stop."""

    def __init__(self, directories: list[Path], addresses: list[str]) -> None:
        """addresses: where members are served, for a node in a network of its own cannot be
        inspected in the clear; so each is asked with its own key."""
        keys = [Identity.load(directory / KEY_NAME) for directory in directories]
        self._nodes = list(zip(addresses, keys, strict=True))
        self.sights = [Sight() for _ in addresses]
        # When each height was first seen to be rebuilt by anybody.
        self.commits: dict[int, float] = {}
        self.problems: list[str] = []

    @property
    def height(self) -> int:
        """The highest height that any node has rebuilt."""
        return max(self.commits, default=0)

    async def run(self) -> None:
        """Watch for ever."""
        async with asyncio.TaskGroup() as group:
            for index in range(len(self._nodes)):
                group.create_task(self._watch(index))

    async def _watch(self, index: int) -> None:
        address, key = self._nodes[index]
        async with own_channel(address, key, time.time()) as channel:
            stub = InspectStub(channel)
            while True:
                try:
                    self._saw(index, await stub.Status(StatusRequest(), timeout=ANSWER_S))
                except grpc.aio.AioRpcError:
                    self.sights[index].reply = None
                await asyncio.sleep(INTERVAL_S)

    def _saw(self, index: int, reply: StatusReply) -> None:
        sight, now = self.sights[index], time.monotonic()
        sight.reply, sight.seen_at = reply, now
        for checkpoint in reply.checkpoints:
            height, root = checkpoint.height, checkpoint.root
            if not checkpoint.materialised or height in sight.heights:
                continue
            sight.heights[height], sight.roots[height] = now, root
            self.commits.setdefault(height, now)
            known = {s.roots[height] for s in self.sights if height in s.roots}
            if len(known) > 1:
                self.problems.append(f"two anchors are certified at height {height}")

    def is_whole(self, index: int, *, above: int) -> bool:
        """Whether the node answers, is linked to all validators and is beyond this height."""
        reply = self.sights[index].reply
        if reply is None or max(self.sights[index].heights, default=0) <= above:
            return False
        linked = sum(p.validator and p.state == "connected" for p in reply.peers)
        return linked == len(self._nodes) - 1

    def common_root(self, *, above: int) -> int:
        """The highest height beyond this one where all anchors are known and equal; 0 if none."""
        heights = set.intersection(*(set(sight.roots) for sight in self.sights))
        for height in sorted(heights, reverse=True):
            if height > above and len({sight.roots[height] for sight in self.sights}) == 1:
                return height
        return 0

    def longest_silence(self, began: float, ended: float) -> float:
        """The longest time without a new height between two moments."""
        times = sorted(t for t in self.commits.values() if began <= t <= ended)
        moments = [began, *times, ended]
        return max(later - sooner for sooner, later in pairwise(moments))
