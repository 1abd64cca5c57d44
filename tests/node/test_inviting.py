"""The two commands, `shoal invite` and `shoal join`, against nodes that run."""

import asyncio
import json
from pathlib import Path

import pytest

from shoal.node.cli import main
from shoal.node.config import load_settings
from shoal.node.errors import BAD_INPUT, NotAdmittedError
from shoal.node.invitations import INVITATION_NAME
from shoal.node.membership import MembershipEnded
from shoal.node.ports import free_ports
from tests.node.mesh import QUICK, RunningNode, found_mesh, until
from tests.node.test_growth import leave

Printed = pytest.CaptureFixture[str]


async def shoal(*words: str | Path) -> int:
    """A command beside the nodes of this process."""
    return await asyncio.to_thread(main, [str(word) for word in words])


async def invited(capsys: Printed, node: RunningNode, *words: str) -> str:
    """The line that `shoal invite` prints; what the nodes log is printed as well."""
    capsys.readouterr()
    assert await shoal("invite", node.directory, *words) == 0
    printed = capsys.readouterr()
    (line,) = (each for each in printed.out.splitlines() if each.startswith("shoal1."))
    assert "shoal join --token" in printed.err
    return line


def test_what_one_command_prints_the_other_takes(tmp_path: Path, capsys: Printed) -> None:
    async def story() -> None:
        (home,) = found_mesh(tmp_path / "mesh", nodes=1)
        first = RunningNode(home, load_settings(home, QUICK))
        await first.start(train=False)
        nodes = [first]
        try:
            line = await invited(capsys, first, "--role", "validator", "--ttl", "1h")
            port = free_ports(1)[0]
            options = ("--listen", f"127.0.0.1:{port}", "--data", load_settings(home).train.data)
            second = tmp_path / "second"
            joining = ("join", "--dir", second, "--no-start", *options)
            assert await shoal(*joining, "--token", line) == 0
            assert (second / INVITATION_NAME).stat().st_mode & 0o777 == 0o600
            guest = await started(second)
            nodes.append(guest)
            await until(lambda: guest.node.status().role == "member", nodes)
            await until(lambda: not (second / INVITATION_NAME).exists(), nodes)
            assert guest.node.status().consensus.may_validate
            await it_leaves_and_comes_back(capsys, first, guest, joining)
        finally:
            await asyncio.gather(*(node.stop() for node in nodes))

    asyncio.run(story())


async def started(directory: Path) -> RunningNode:
    node = RunningNode(directory, load_settings(directory, QUICK))
    await node.start(train=False)
    return node


async def it_leaves_and_comes_back(
    capsys: Printed, first: RunningNode, guest: RunningNode, joining: tuple[str | Path, ...]
) -> None:
    """The same directory and key, with a new line, and not without."""
    second = guest.directory
    leave(guest)
    await until(lambda: guest.failed() is not None, [first])
    assert isinstance(guest.cause(), MembershipEnded)
    await guest.stop()
    await guest.start(train=False)
    await until(lambda: guest.failed() is not None, [first])
    assert isinstance(guest.cause(), NotAdmittedError), "nobody has invited it again"
    await guest.stop()
    assert await shoal(*joining) == BAD_INPUT, "it is a node, and nothing says what else is meant"
    assert await shoal(*joining, "--token", await invited(capsys, first)) == 0
    assert (second / INVITATION_NAME).exists()
    await guest.start(train=False)
    await until(lambda: guest.node.status().role == "member", [first, guest])
    assert not guest.node.status().consensus.may_validate, "a guest this time"
    assert await shoal("invite", second, "--role", "validator") == BAD_INPUT
    assert "cannot invite validators" in capsys.readouterr().err


def test_an_invitation_for_programs(tmp_path: Path, capsys: Printed) -> None:
    async def story() -> None:
        (home,) = found_mesh(tmp_path / "mesh", nodes=1)
        first = RunningNode(home, load_settings(home, QUICK))
        await first.start(train=False)
        try:
            capsys.readouterr()
            assert await shoal("invite", home, "--uses", "3", "--json") == 0
            lines = capsys.readouterr().out.splitlines()
            (made,) = (json.loads(each) for each in lines if each.startswith("{"))
            assert (made["uses"], made["role"]) == (3, "member")
            assert made["address"] == first.settings.node.join_listen
            assert await shoal("invite", home, "--uses", "0") == BAD_INPUT
        finally:
            await first.stop()

    asyncio.run(story())
