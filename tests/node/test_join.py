"""Joining: cut off at any step, the same command again goes on, and nothing is lost."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.node.checkpoint_dirs import newest_checkpoint
from shoal.node.config import load_settings
from shoal.node.errors import UserError
from shoal.node.identity import Identity
from shoal.node.join import join_mesh
from shoal.node.presets import Preset
from shoal.node.verify import verify_checkpoint
from tests.node.mesh import RunningNode, found_mesh, running, until

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
        "mesh_id": first.node.mesh_id.hex(),
        "insecure": False,
        "preset": Preset(mesh={}, settings={"gossip.degree": 5, "train.batch": 3}),
        "flags": {"train.batch": 2, "train.device": None},
        **changes,
    }
    await join_mesh(first.settings.node.listen, directory, **arguments)


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
    assert settings.node.peers == [first.settings.node.listen]
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
