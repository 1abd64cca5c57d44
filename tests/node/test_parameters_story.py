"""A quorum changes the mesh's parameters while everybody trains; then a stranger checks it all."""

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from shoal.consensus.changes import Change, ChangeKind
from shoal.gossip.delta import DeltaReference
from shoal.gossip.parameters import EpochParameters
from shoal.node import cli
from shoal.node.audit import audit_all
from shoal.node.checkpoint_dirs import checkpoint_directories
from shoal.node.config import load_settings
from shoal.node.errors import DAMAGED, OK, UserError
from shoal.node.genesis import load_genesis
from shoal.node.identity import Identity
from shoal.node.join import join_mesh
from shoal.node.membership import approval
from shoal.node.operator import approve_parameters, mesh_parameters
from shoal.node.parameters import MeshParameters
from shoal.node.verify import verify_checkpoint
from shoal.node.verify_content import check_deltas
from shoal.node.verify_formats import parse_genesis
from shoal.node.verify_parameters import density
from tests.node.inviting import invitation_by
from tests.node.mesh import QUICK, RunningNode, any_address, found_mesh, until, until_rebuilt

KEPT = {**QUICK, "retention.keep_whole": 100}
WISH = {
    "clip_factor": "1.25",
    # Among four it pays for sixteen values if they are said half as often, and for 64 at the most.
    "budget": "0.0084",
    "local_steps": "0",
    "learning_rate": "0.002",
    "beta": "0.9",
    "normalise_steps": "true",
}
NONSENSE = b"\x01 these are no parameters"


def in_force(node: RunningNode) -> MeshParameters:
    return node.model.mesh()


def epoch(node: RunningNode) -> int:
    return node.node.state.consensus.replica.validators.epoch


async def started(directory: Path) -> RunningNode:
    node = RunningNode(directory, load_settings(directory, KEPT))
    await node.start()
    return node


async def two_more(nodes: list[RunningNode]) -> None:
    await until_rebuilt(nodes, max(node.height for node in nodes) + 2, seconds=90)


async def approved_by(node: RunningNode) -> str:
    return await asyncio.to_thread(partial(approve_parameters, node.directory, WISH))


async def a_quorum_decides(nodes: list[RunningNode]) -> None:
    before = in_force(nodes[0])
    with pytest.raises(UserError, match="budget must be from"):
        await asyncio.to_thread(partial(approve_parameters, nodes[0].directory, {"budget": "0"}))
    assert "clip_factor 2.0 -> 1.25" in await approved_by(nodes[0])
    assert "3 of 4" in await approved_by(nodes[0]), "saying it twice is no harm"
    assert "3 of 4" in await approved_by(nodes[1])
    await two_more(nodes)
    assert {in_force(node) for node in nodes} == {before}, "two of four decide nothing"
    words = [f"--set={name}={value}" for name, value in WISH.items()]
    last = ["parameters", str(nodes[3].directory), *words]
    assert await asyncio.to_thread(cli.main, last) == OK
    await until(lambda: all(epoch(node) == 1 for node in nodes), nodes)
    assert len({in_force(node) for node in nodes}) == 1
    assert in_force(nodes[2]).clip_factor == 1.25
    assert in_force(nodes[2]).staleness == before.staleness
    assert await asyncio.to_thread(cli.main, ["parameters", str(nodes[1].directory)]) == OK
    with pytest.raises(UserError, match="in force already"):
        await approved_by(nodes[1])
    answer = await asyncio.to_thread(mesh_parameters, nodes[2].directory)
    assert answer.in_force == in_force(nodes[2]) and answer.decided is None
    await two_more(nodes)
    for node in nodes:
        assert node.model.parameters.kept_per_chunk == 16
        assert node.model.rules.local_steps == 10
        schedule = node.training.schedule
        assert schedule is not None and schedule["learning_rate"] == 0.002
    assert nodes[0].training.steps[-1] == 10
    await old_deltas_can_still_be_read(nodes)


async def old_deltas_can_still_be_read(nodes: list[RunningNode]) -> None:
    """Their frames are larger than any that counts now; they may have to be said again."""
    model, (first, *_) = nodes[0].model, nodes
    old = [
        DeltaReference(header.sender, header.sequence, header.id)
        for header in first.headers
        if header.height == 0
    ]
    await until(lambda: all(e.kept_per_chunk == 16 for e in model.book.settled.epochs), nodes)
    read = [delta for each in old if (delta := await model.load(each)) is not None]
    assert max(len(delta.frame) for delta in read) > model.frame_bytes_max


async def a_quorum_decides_on_nonsense(nodes: list[RunningNode]) -> None:
    """No node passes that on for its operator; the validators' own keys can still order it."""
    wish, began_in = in_force(nodes[0]), epoch(nodes[0])
    change = Change(ChangeKind.PARAMETERS, parameters=NONSENSE)
    for index, node in enumerate(nodes[:3]):
        identity = Identity.load(node.directory / "identity.key")
        signed = approval(identity, node.node.mesh_id, began_in, change)
        if not index:
            assert await node.node.submit(signed) == "bad-parameters"
        node.node.state.consensus.submit(signed)
    await until(lambda: all(epoch(node) == began_in + 1 for node in nodes), nodes)
    assert {in_force(node) for node in nodes} == {wish}
    await two_more(nodes)


async def joined(directory: Path, first: RunningNode) -> RunningNode:
    await join_mesh(
        first.settings.node.join_listen,
        directory,
        listen=any_address(),
        advertise="",
        data=first.settings.train.data,
        invitation=invitation_by(first),
        contact=first.id,
    )
    return await started(directory)


def test_parameters_change_at_an_epoch_for_everybody_for_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path / "mesh")
        nodes = [await started(directory) for directory in directories]
        try:
            nodes[1].training.times = 4
            await until(lambda: all(node.height >= 1 for node in nodes), nodes)
            await a_quorum_decides(nodes)
            wish = in_force(nodes[0])
            victim = nodes.pop()
            await victim.stop()
            nodes.append(await started(victim.directory))
            assert in_force(nodes[3]) == wish, "it has the chain of epochs on its own disk"
            nodes.append(await joined(tmp_path / "fifth", nodes[0]))
            await until(lambda: in_force(nodes[4]) == wish, nodes)
            me = bytes.fromhex(nodes[4].node.status().node_id)
            await until(lambda: me in nodes[0].model.parameters.members, nodes)
            await a_quorum_decides_on_nonsense(nodes)
        finally:
            await asyncio.gather(*(node.stop() for node in nodes))

    asyncio.run(story())
    _a_stranger_checks(tmp_path, capsys)


def _a_stranger_checks(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    genesis, _, _ = load_genesis(directory / "mesh" / "node0" / "genesis")
    audits, _ = audit_all(directory / "mesh" / "node0")
    assert all(audit.reproduced for audit in audits), [audit.problems for audit in audits]
    epochs, normalised = set(), set()
    for height, path in checkpoint_directories(directory / "mesh" / "node0").items():
        proof = verify_checkpoint(path, genesis.mesh_id)
        epochs.add(proof.epoch.number)
        # The fifth member makes everybody say less.
        decided = {4: 16, 5: 11}[proof.record.members]
        expected = decided if proof.epoch.number else 256
        assert density(proof.in_force, proof.record.members) == proof.record.kept_per_chunk
        assert proof.record.kept_per_chunk == expected
        assert proof.in_force["clip_factor"] == (1.25 if proof.epoch.number else 2.0)
        settled = EpochParameters.from_bytes(proof.record.parameters[:-32])
        assert settled.height == height
        # What it is was recomputed, here by the verifier and above by the audit.
        assert (settled.steps > 0) == (proof.epoch.number > 0)
        told = check_deltas(path, parse_genesis(genesis.document), proof.record)
        assert told is not None
        normalised |= {steps for _, steps in told if proof.epoch.number}
    assert epochs == {0, 1, 2}
    assert max(normalised) >= 4 * min(normalised), "one of them made so many more steps"
    assert {audit.height for audit in audits} >= set(range(2, height + 1)), "across the change too"
    capsys.readouterr()
    assert cli.main(["verify", str(path)]) == 0
    assert "clip_factor 1.25" in capsys.readouterr().out
    assert cli.main(["verify", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mesh_parameters"]["beta"] == 0.9
    _with_the_chain_of_another_epoch(path)


def _with_the_chain_of_another_epoch(path: Path) -> None:
    """Parameters that the mesh did not decide are as good as no proof at all."""
    chain = path / "epochs.bin"
    data = bytearray(chain.read_bytes())
    at = data.index(NONSENSE)
    data[at + 1] ^= 1
    chain.write_bytes(data)
    assert cli.main(["verify", str(path)]) == DAMAGED
