"""When a mesh of real nodes has done its work, and what it says of itself before it is stopped."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from shoal.node.checkpoint_dirs import checkpoint_directories
from shoal.node.checkpoints import MODEL_WEIGHTS

# What came after the last full cut gets one of its own when all has been quiet for four rounds:
# no new checkpoint for so long is the end.
SETTLE_SECONDS = 15.0
STOP_SECONDS = 20.0
# A node on a starved machine may answer late.
ASK_SECONDS = 120.0
# What is shown of a node that ended: everything else is deleted with its directory.
LOG_TAIL_BYTES = 400


class MeshEnd:
    """Every round is made, and the last cut is on everybody's disk."""

    def __init__(
        self,
        nodes: Sequence[Path],
        processes: "Sequence[subprocess.Popen[bytes]]",
        inside: Callable[[int, Sequence[str]], list[str]],
    ) -> None:
        """inside: gives the command that runs a command where a node of this number runs."""
        self._nodes = nodes
        self._processes = processes
        self._inside = inside
        self._seen: list[int] = []
        self._since = 0.0

    def reached(self) -> bool:
        """Whether nothing more will come; a node that ended early is an error."""
        for node, process in zip(self._nodes, self._processes, strict=True):
            assert process.poll() is None, (
                f"{node.name} has ended: {_log(node)[-LOG_TAIL_BYTES:]!r}"
            )
        if not all(b'"training.finished"' in _log(node) for node in self._nodes):
            return False
        seen = [max(checkpoint_directories(node), default=0) for node in self._nodes]
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return time.monotonic() - self._since >= SETTLE_SECONDS

    def began(self) -> float:
        """When the first node began its first step; seconds since the epoch."""
        return min(map(_first_step, self._nodes))

    def stop(self) -> dict[str, object]:
        """Compare the anchors of all nodes at every cut, then stop them.

        Raises AssertionError where two are not the same, bit for bit.
        """
        replies = [self._status(index) for index in range(len(self._nodes))]
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(STOP_SECONDS)
        cuts: dict[int, set[str]] = {}
        for reply in replies:
            for checkpoint in reply["checkpoints"]:
                assert checkpoint["materialised"], "a certified anchor was not rebuilt"
                cuts.setdefault(int(checkpoint["height"]), set()).add(checkpoint["root"])
        assert cuts and all(len(roots) == 1 for roots in cuts.values()), "anchors differ"
        newest = {int(reply["checkpoints"][-1]["height"]) for reply in replies}
        gossip = [reply["gossip"] for reply in replies]
        return {
            "cuts_with_equal_anchors": len(cuts),
            "newest_heights": sorted(newest),
            "deltas_uncommitted": max(int(each.get("pending_deltas", 0)) for each in gossip),
            "bits_per_kept_value": round(gossip[0]["bits_per_kept_value"], 3),
            "alpha": round(gossip[0]["alpha"], 4),
            "rejected": [reply.get("rejected", {}) for reply in replies],
            "payload_bytes": [reply["sent_bytes"] for reply in replies],
            "computing_share": [
                round(reply["training"]["computing_share"], 4) for reply in replies
            ],
        }

    def average(self, last: int) -> list[Path]:
        """The mean of each node's newest checkpoints, which `shoal average` makes; none after a run
        too short for it."""
        if any(len(checkpoint_directories(node)) < 2 for node in self._nodes):
            return []
        targets = [node / "average" for node in self._nodes]
        for node, target in zip(self._nodes, targets, strict=True):
            command = [sys.executable, "-m", "shoal.node", "average", str(node), str(target)]
            command += ["--last", str(last)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [target / MODEL_WEIGHTS for target in targets]

    def _status(self, index: int) -> dict[str, Any]:
        command = [sys.executable, "-m", "shoal.node", "status", str(self._nodes[index]), "--json"]
        deadline = time.monotonic() + ASK_SECONDS
        while True:
            done = subprocess.run(
                self._inside(index, command), check=False, capture_output=True, text=True
            )
            if done.returncode == 0:
                break
            assert time.monotonic() < deadline, f"node {index} does not answer: {done.stderr}"
        reply: dict[str, Any] = json.loads(done.stdout)
        return reply


def _first_step(node: Path) -> float:
    for line in _log(node).splitlines():
        if b'"round.published"' in line:
            event = json.loads(line)
            ended = datetime.fromisoformat(event["timestamp"]).timestamp()
            return ended - float(event["seconds"])
    raise AssertionError("no round was published")


def _log(node: Path) -> bytes:
    return (node / "node.log").read_bytes()
