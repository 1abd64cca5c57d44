"""Joining: cut off at any step, the same command again goes on, and nothing is lost."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal.consensus.epochs import EpochChain, EpochLink, parse_link
from shoal.consensus.errors import ConsensusError
from shoal.consensus.votes import VoteKind
from shoal.gossip.manifest import Manifest
from shoal.node.bulk_wire import Contact, Description
from shoal.node.certified import Certifier
from shoal.node.checkpoint_dirs import newest_checkpoint
from shoal.node.config import load_settings
from shoal.node.errors import UserError
from shoal.node.identity import Identity, short
from shoal.node.join import _is_sound, join_mesh
from shoal.node.presets import Preset
from shoal.node.verify import verify_checkpoint
from tests.node.certified import MESH, SCHEMA, CertifiedMesh, as_list
from tests.node.inviting import invitation_by
from tests.node.mesh import QUICK, RunningNode, any_address, found_mesh, running, until
from tests.node.test_growth import leave, validators

WANTED = {**QUICK, "consensus.validators_wanted": 3}
CHANGES = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree"})


class Killed(BaseException):
    """The process ends here: nothing catches it."""


class Kill:
    """Ends what runs in this process at its n-th change of a directory, before it is made."""

    def __init__(self) -> None:
        self._directory, self._left, self.steps = "", 0, 0
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._directory or not arguments or self._directory not in str(arguments[0]):
            return
        writes = event == "open" and str(arguments[1] or "r")[0] in "wxa"
        if writes or event in CHANGES:
            self.steps += 1
            if self.steps > self._left:
                raise Killed

    @contextmanager
    def after(self, steps: int, directory: Path) -> Iterator[None]:
        """Let so many changes of `directory` happen."""
        self._directory, self._left, self.steps = str(directory), steps, 0
        try:
            yield
        finally:
            self._directory = ""


KILL = Kill()


async def join(directory: Path, first: RunningNode, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "listen": "127.0.0.1:7499",
        "advertise": "",
        "data": first.settings.train.data,
        "invitation": invitation_by(first),
        "contact": first.id,
        "preset": Preset(mesh={}, settings={"gossip.degree": 5, "train.batch": 3}),
        "flags": {"train.batch": 2, "train.device": None},
        **changes,
    }
    await join_mesh(first.settings.node.join_listen, directory, **arguments)


def key_of(directory: Path) -> bytes | None:
    path = directory / "identity.key"
    return Identity.load(path).node_id if path.exists() and path.stat().st_size else None


async def is_killed(steps: int, directory: Path, first: RunningNode) -> bool:
    with KILL.after(steps, directory):
        try:
            await join(directory, first)
        except Killed:
            return True
    return False


def require_a_node(directory: Path, first: RunningNode) -> None:
    settings = load_settings(directory)
    assert (settings.gossip.degree, settings.train.batch) == (5, 2)
    contact = first.id.hex()
    assert settings.node.peers[0] == f"{contact}@{first.settings.node.listen}"
    assert settings.node.contacts[0] == f"{contact}@{first.settings.node.join_listen}"
    proof = verify_checkpoint(newest_checkpoint(directory), first.node.mesh_id)
    assert proof.record.height >= 1
    assert not [*directory.glob("*.new"), *directory.glob("checkpoints/.*")], "nothing lies about"


def test_a_join_that_is_killed_at_any_step_is_gone_on_with(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path / "mesh", nodes=1), rounds=2) as nodes:
            (first,) = nodes
            await until(lambda: first.node.holdings.whole_heights() != [], nodes)
            steps = 0
            while await is_killed(steps, directory := tmp_path / f"killed{steps}", first):
                assert not (directory / "node.toml").exists(), "it is no node before it is whole"
                key = key_of(directory)
                await join(directory, first)
                assert key in (None, key_of(directory)), "the key that it had is the key it has"
                require_a_node(directory, first)
                steps += 1
            require_a_node(directory, first)
            assert steps > 20
            await it_is_killed_again_and_again(tmp_path / "unlucky", first)

    asyncio.run(story())


async def it_is_killed_again_and_again(directory: Path, first: RunningNode) -> None:
    """Each time a little later; what a try left never stands in the way of the next."""
    steps, keys = 0, set[bytes | None]()
    while await is_killed(steps, directory, first):
        keys.add(key_of(directory))
        steps += 3
    keys.add(key_of(directory))
    assert len(keys - {None}) == 1
    require_a_node(directory, first)


def test_a_key_file_without_a_key_in_it_is_made_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path / "mesh", nodes=1), rounds=2) as nodes:
            await until(lambda: nodes[0].node.holdings.whole_heights() != [], nodes)
            directory = tmp_path / "second"
            (directory / "genesis").mkdir(parents=True)
            (directory / "identity.key").touch(mode=0o600)
            (directory / "genesis" / "genesis.json").write_text('{"format"')
            await join(directory, nodes[0])
            require_a_node(directory, nodes[0])

    asyncio.run(story())


def test_a_joiner_takes_nobody_else_for_its_contact_unless_it_is_told_to(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path / "mesh", nodes=1), rounds=2) as nodes:
            await until(lambda: nodes[0].node.holdings.whole_heights() != [], nodes)
            directory = tmp_path / "second"
            with pytest.raises(
                UserError, match=f"{short(nodes[0].id)} answers at .*, not abababab"
            ):
                await join(directory, nodes[0], contact=b"\xab" * 32)
            assert not directory.exists()
            await join(directory, nodes[0], contact=None)
            require_a_node(directory, nodes[0])

    asyncio.run(story())


def test_what_was_begun_for_another_mesh_is_not_mixed_with_this_one(tmp_path: Path) -> None:
    async def story() -> None:
        one, other = found_mesh(tmp_path / "one", nodes=1), found_mesh(tmp_path / "two", nodes=1)
        async with running([*one, *other], rounds=2) as nodes:
            await until(lambda: all(n.node.holdings.whole_heights() for n in nodes), nodes)
            directory = tmp_path / "second"
            await join(directory, nodes[0])
            (directory / "node.toml").unlink()
            with pytest.raises(UserError, match="holds the beginnings of a node of mesh"):
                await join(directory, nodes[1])
            await join(directory, nodes[0])
            require_a_node(directory, nodes[0])

    asyncio.run(story())


def test_a_joiner_gets_in_though_its_contact_and_all_founders_are_gone(tmp_path: Path) -> None:
    async def story() -> None:
        (home,) = found_mesh(tmp_path / "mesh", nodes=1)
        first = RunningNode(home, load_settings(home, WANTED))
        await first.start()
        nodes = [first]
        try:
            await until(lambda: first.node.holdings.whole_heights() != [], nodes)
            for number in (2, 3):
                nodes.append(await joined(tmp_path / f"{number}", first))
                await until(lambda n=number: validators(first) == n, nodes)  # type: ignore[misc]
            # Not by the first one: an invitation goes when whoever signed it goes.
            late = await joined(
                tmp_path / "late", first, start=False, invitation=invitation_by(nodes[1])
            )
            known = [f"{node.id.hex()}@{node.settings.node.listen}" for node in nodes]
            assert late.settings.node.peers[0] == known[0]
            assert sorted(late.settings.node.peers) == sorted(known)
            assert len(late.settings.node.contacts) == 3
            leave(first)
            await until(lambda: first.failed() is not None, nodes[1:])
            await first.stop()
            del nodes[0]
            await late.start()
            nodes.append(late)
            await until(lambda: counts(late, nodes[0]), nodes)
            await until(lambda: late.node.status().role == "member", nodes)
        finally:
            await asyncio.gather(*(node.stop() for node in nodes))

    asyncio.run(story())


def counts(node: RunningNode, seen_by: RunningNode) -> bool:
    """Whether what the node learns is counted in the mesh."""
    return node.node.state.node_id in seen_by.model.parameters.members


async def joined(
    directory: Path, first: RunningNode, *, start: bool = True, **changes: Any
) -> RunningNode:
    plain = Preset(mesh={}, settings={})
    await join(directory, first, listen=any_address(), preset=plain, **changes)
    node = RunningNode(directory, load_settings(directory, WANTED))
    if start:
        await node.start()
    return node


@pytest.mark.parametrize(
    ("address", "taken"),
    [
        ("10.0.0.7:7400", True),
        ("[::1]:7400", True),
        ("host.example:7400", True),
        ("nowhere", False),
        ("a\nb:7400", False),
        ("a,b:7400", False),
        ("a:" + "9" * 400, False),
    ],
)
def test_what_the_contact_says_of_others_is_an_address_or_nothing(
    address: str, taken: bool
) -> None:
    assert _is_sound(Contact(bytes(32), address, "127.0.0.1:1")) == taken
    assert _is_sound(Contact(bytes(32), "127.0.0.1:1", address)) == taken


def description_of(mesh: CertifiedMesh) -> Description:
    return Description(
        height=mesh.height,
        operation=mesh.operation,
        certificate=mesh.commit(mesh.operation).to_bytes(),
        settled=mesh.settled,
        anchor_bytes=4 * SCHEMA.layout.total,
        addresses=Manifest.of(mesh.anchor).addresses,
        epochs=as_list(mesh.links),
    )


def test_a_chain_is_verified_once_whoever_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[EpochLink] = []
    check = EpochChain.check

    def counted(self: EpochChain, link: EpochLink, verify: Any) -> None:
        check(self, link, verify)
        checked.append(link)

    monkeypatch.setattr(EpochChain, "check", counted)
    described = description_of(MESH)
    certifier = Certifier(MESH.genesis)
    for _ in range(3):
        assert certifier.check(described).height == MESH.height
    assert certifier.epochs(described).last == 2
    assert len(checked) == 2, "two links, once"
    # The same epochs under other signatures have to stand on their own.
    first = parse_link(MESH.links[0]).certificate
    other = MESH.certificate(
        VoteKind.STABLE,
        epoch=0,
        view=0,
        sequence=first.sequence,
        digest=first.digest,
        voters=MESH.sets[0],
        signers=(0, 1, 2),
    )
    assert other.signers != first.signers
    again = (MESH.links[0][: -len(first.to_bytes())] + other.to_bytes(), MESH.links[1])
    assert certifier.check(replace(described, epochs=as_list(again))).height == MESH.height
    assert len(checked) == 4
    for wrong in (as_list(MESH.links[:1]), as_list((MESH.links[1], MESH.links[0]))):
        with pytest.raises(ConsensusError):
            certifier.check(replace(described, epochs=wrong))
    assert certifier.check(described).height == MESH.height, "a liar spoils nothing"
