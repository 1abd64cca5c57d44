"""From one node to seven validators and back to four, while everybody trains and commits."""

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest

from shoal.consensus.changes import ChangeKind
from shoal.consensus.records import Leave, operation_bytes
from shoal.node.checkpoint_dirs import newest_checkpoint
from shoal.node.config import load_settings
from shoal.node.errors import UserError
from shoal.node.genesis import parse_document
from shoal.node.identity import Identity
from shoal.node.join import join_mesh
from shoal.node.membership import MembershipEnded
from shoal.node.operator import approve
from shoal.node.verify import verify_checkpoint
from tests.chaos.audit import audit
from tests.node import mesh
from tests.node.inviting import invitation_by
from tests.node.mesh import (
    QUICK,
    RunningNode,
    any_address,
    found_mesh,
    running,
    until,
    until_rebuilt,
)

# Seven nodes share one event loop here, so they are given more time than as processes of their own.
WANTED = {
    **QUICK,
    "consensus.validators_wanted": 7,
    "consensus.capture": True,
    "consensus.base_timeout_s": 1.5,
    "consensus.candidate_timeout_s": 3.0,
}
ROUND_SECONDS = 2.0


class Pulse:
    """How long the mesh ever went without a new committed height."""

    def __init__(self, node: RunningNode) -> None:
        self._node = node
        self.longest_s = 0.0
        self.heights = [node.height]

    async def run(self) -> None:
        since = time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            height = self._node.node.state.consensus.replica.ledger.height
            self.longest_s = max(self.longest_s, time.monotonic() - since)
            if height != self.heights[-1]:
                since = time.monotonic()
                self.heights.append(height)


async def join_as_validator(directory: Path, first: RunningNode) -> RunningNode:
    await join_mesh(
        first.settings.node.join_listen,
        directory,
        listen=any_address(),
        advertise="",
        data=first.settings.train.data,
        invitation=invitation_by(first),
        contact=first.id,
    )
    node = RunningNode(directory, load_settings(directory, WANTED))
    await node.start()
    return node


def validators(node: RunningNode) -> int:
    return len(node.node.state.consensus.replica.validators.keys)


def leave(node: RunningNode) -> None:
    identity = Identity.load(node.directory / "identity.key")
    unsigned = Leave(member=identity.node_id, time_ms=time.time_ns() // 1_000_000)
    signature = identity.sign(unsigned.signed_bytes(node.node.mesh_id))
    signed = Leave(member=identity.node_id, time_ms=unsigned.time_ms, signature=signature)
    node.node.state.consensus.submit(operation_bytes(signed))


def test_one_node_grows_to_seven_validators_and_shrinks_to_four(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "ROUND_SECONDS", ROUND_SECONDS)

    async def story() -> None:
        (directory,) = found_mesh(tmp_path, nodes=1)
        first = RunningNode(directory, load_settings(directory, WANTED))
        await first.start()
        nodes = [first]
        pulse = Pulse(first)
        watching = asyncio.create_task(pulse.run())
        try:
            await until(lambda: first.height >= 1, nodes)
            for number in range(2, 8):
                nodes.append(await join_as_validator(tmp_path / f"joiner{number}", first))
                await until(lambda n=number: validators(first) == n, nodes, seconds=90)  # type: ignore[misc]
            await until_rebuilt(nodes, first.height + 2, seconds=90)
            leavers = nodes[-3:]
            for index, leaver in enumerate(leavers):
                leave(leaver)
                await until(lambda n=6 - index: validators(first) == n, nodes[:4], seconds=90)  # type: ignore[misc]
                await until(lambda one=leaver: one.failed() is not None, nodes[:4], seconds=60)  # type: ignore[misc]
                assert isinstance(leaver.cause(), MembershipEnded)
                await leaver.stop()
            await until_rebuilt(nodes[:4], first.height + 2, seconds=90)
            assert pulse.heights == sorted(pulse.heights), "no committed checkpoint was lost"
            assert pulse.longest_s < 30, f"stalled for {pulse.longest_s:.0f} s"
        finally:
            watching.cancel()
            await asyncio.gather(*(node.stop() for node in nodes[:4]))

    asyncio.run(story())
    _strangers_check(tmp_path)


def _strangers_check(directory: Path) -> None:
    """Nine changes of the set later, everything still follows from the genesis alone."""
    newest = newest_checkpoint(directory / "node0")
    document = (directory / "node0" / "genesis" / "genesis.json").read_bytes()
    proof = verify_checkpoint(newest, parse_document(document).mesh_id)
    assert proof.epoch.number >= 9
    findings = audit(sorted(path.parent for path in directory.glob("*/capture")))
    assert findings.all_problems() == []
    assert {asked[2] for asked in findings.statements} >= set(range(10)), "all epochs were heard"


def test_a_quorum_of_operators_promotes_and_demotes(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path), rounds=0) as nodes:
            await until(lambda: nodes[0].height >= 1, nodes)
            member = nodes[3].node.status().node_id[:12]
            with pytest.raises(UserError, match="tolerate 1 failing ones, 3 none"):
                await asyncio.to_thread(approve, nodes[0].directory, ChangeKind.DEMOTE, member)
            with pytest.raises(UserError, match="names no node"):
                await asyncio.to_thread(
                    approve, nodes[0].directory, ChangeKind.PROMOTE, "ffff" * 16
                )
            with pytest.raises(UserError, match="it is a validator already"):
                await asyncio.to_thread(approve, nodes[0].directory, ChangeKind.PROMOTE, member)
            for node in nodes[:3]:
                demote = partial(approve, node.directory, ChangeKind.DEMOTE, member, force=True)
                assert "3 of 4" in await asyncio.to_thread(demote)
            await until(lambda: all(validators(node) == 3 for node in nodes), nodes)
            assert nodes[3].node.status().role == "member"
            await until_rebuilt(nodes, nodes[3].height + 2)

    asyncio.run(story())
