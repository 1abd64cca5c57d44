"""The demo around the nodes: what it may overwrite, whom it may end, when it is over."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from shoal.node import demo_processes
from shoal.node.demo_processes import (
    LOG_NAME,
    PID_NAME,
    NodeProcess,
    claim_directory,
    clean_environment,
    log_tail,
    running_node,
    stop_nodes,
)
from shoal.node.demo_watch import SETTLE_SECONDS, Settled, Watched, all_answer, hopeless
from shoal.node.errors import UserError
from shoal.node.inspect_client import open_channel
from shoal.proto import inspect_pb2
from tests.node.fake_node import example_checkpoint, example_reply

SLEEP = "print('ready', flush=True); import time; time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def pretend_node(
    processes: list[subprocess.Popen[str]], directory: Path, *arguments: str, program: str = SLEEP
) -> subprocess.Popen[str]:
    """A process with these arguments, whose pid the directory claims to be its node's."""
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (directory / PID_NAME).write_text(str(process.pid))
    return process


def test_a_node_of_the_demo_is_found_by_its_pid_file_and_ended(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    node = pretend_node(processes, tmp_path, "-m", "shoal.node", "run", str(tmp_path))
    assert running_node(tmp_path) is not None
    assert stop_nodes([tmp_path]) == 1
    assert not psutil.pid_exists(node.pid)
    assert stop_nodes([tmp_path]) == 0


@pytest.mark.parametrize(
    "arguments", [(), ("-m", "shoal.node", "run", "/another/node"), ("-m", "editor", "run")]
)
def test_a_process_that_does_not_run_this_node_is_never_ended(
    tmp_path: Path, processes: list[subprocess.Popen[str]], arguments: tuple[str, ...]
) -> None:
    stranger = pretend_node(processes, tmp_path, *arguments)
    assert stop_nodes([tmp_path]) == 0
    assert stranger.poll() is None


def test_a_node_that_does_not_end_is_killed(
    tmp_path: Path, processes: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_processes, "STOP_SECONDS", 0.2)
    arguments = ("-m", "shoal.node", "run", str(tmp_path))
    node = pretend_node(processes, tmp_path, *arguments, program=STUBBORN)
    assert stop_nodes([tmp_path]) == 1
    assert not psutil.pid_exists(node.pid)


@pytest.mark.parametrize("content", ["", "not a pid", "999999999", "-1"])
def test_a_damaged_pid_file_ends_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / PID_NAME).write_text(content)
    assert stop_nodes([tmp_path, tmp_path / "missing"]) == 0


def test_a_directory_that_is_not_a_demo_is_never_touched(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    with pytest.raises(UserError, match="not a demo"):
        claim_directory(tmp_path, marker="demo.marker", ours=["*"])
    with pytest.raises(UserError, match="is a file"):
        claim_directory(thesis, marker="demo.marker", ours=["*"])
    assert thesis.read_text() == "years of work"


def test_an_old_demo_makes_room_for_a_new_one_and_keeps_what_is_not_its_own(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    directory = tmp_path / "runs" / "demo"
    claim_directory(directory, marker="demo.marker", ours=["node*", "report.json"])
    node = directory / "node0"
    running = pretend_node(processes, node, "-m", "shoal.node", "run", str(node))
    (directory / "report.json").touch()
    (directory / "notes.txt").touch()
    claim_directory(directory, marker="demo.marker", ours=["node*", "report.json"])
    assert sorted(entry.name for entry in directory.iterdir()) == ["demo.marker", "notes.txt"]
    assert not psutil.pid_exists(running.pid)


def test_settings_of_the_shell_do_not_reach_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_NODE__LISTEN", "127.0.0.1:7400")
    monkeypatch.setenv("SHOAL_IMAGE", "x")
    environment = clean_environment()
    assert "SHOAL_NODE__LISTEN" not in environment
    assert environment["SHOAL_IMAGE"] == "x"
    assert "PATH" in environment


def test_the_last_lines_of_a_log_are_shown_even_when_it_is_long(tmp_path: Path) -> None:
    assert log_tail(tmp_path, lines=2) == []
    lines = [f"line {number}" for number in range(10_000)]
    (tmp_path / LOG_NAME).write_text("\n".join(lines) + "\n\n")
    assert log_tail(tmp_path, lines=2) == ["line 9998", "line 9999"]


def watched(
    *, state: str = "finished", height: int = 4, death: str = "", **changes: Any
) -> Watched:
    """A node that made its 32 rounds, as the demo sees it."""
    reply = example_reply()
    reply.training.state = state
    reply.gossip.pending_deltas = changes.pop("pending_deltas", 0)
    del reply.checkpoints[:]
    reply.checkpoints.extend(example_checkpoint(each, **changes) for each in range(1, height + 1))
    return known(reply, death=death)


def known(reply: inspect_pb2.StatusReply | None, *, death: str = "") -> Watched:
    return Watched(
        node=cast(NodeProcess, None),
        channel=cast(Any, None),
        restart=cast(Any, None),
        reply=reply,
        death=death,
    )


def test_the_demo_is_over_when_everything_is_committed_everywhere() -> None:
    assert Settled(32)([watched() for _ in range(4)], 0.0)


@pytest.mark.parametrize(
    "unfinished",
    [
        {"state": "training"},
        {"height": 3},
        {"height": 0},
        {"materialised": False},
        {"pending_deltas": 1},
    ],
)
def test_one_node_that_is_not_there_yet_is_waited_for(unfinished: dict[str, Any]) -> None:
    nodes = [watched(), watched(), watched(), watched(**unfinished)]
    assert not Settled(32)(nodes, 0.0)


def test_deltas_that_no_cut_will_take_are_waited_for_only_so_long() -> None:
    settled = Settled(32)
    nodes = [watched(pending_deltas=2) for _ in range(4)]
    assert not settled(nodes, 100.0)
    assert not settled(nodes, 100.0 + SETTLE_SECONDS / 2)
    more = [watched(pending_deltas=2, height=5) for _ in range(4)]
    assert not settled(more, 100.0 + SETTLE_SECONDS)
    assert settled(more, 100.0 + 2 * SETTLE_SECONDS)


def test_nobody_waits_for_the_dead() -> None:
    nodes = [watched(), watched(), watched(), watched(state="training", height=1, death="signal 9")]
    assert Settled(32)(nodes, 0.0)


def test_a_training_that_failed_is_not_waited_for() -> None:
    failed = watched(state="failed: no text")
    assert failed.training_failed
    assert Settled(32)([watched(), watched(), watched(), failed], 0.0)


def test_the_start_is_over_when_everybody_who_lives_has_answered() -> None:
    assert not all_answer([watched(), known(None)], 0.0)
    assert all_answer([watched(), known(None, death="exit code 2")], 0.0)


def test_with_too_few_nodes_for_a_quorum_there_is_nothing_to_wait_for() -> None:
    nodes = [watched(), watched(), watched(), watched(death="signal 9")]
    assert hopeless(nodes) == ""
    nodes[0].death = "signal 9"
    assert hopeless(nodes) == "only 2 of 4 nodes live, 3 are needed to commit"
    assert "only 0 of 1" in hopeless([known(None, death="exit code 2")])


def test_a_node_that_is_killed_is_started_again_and_one_that_fails_is_not(tmp_path: Path) -> None:
    def ended(code: int) -> NodeProcess:
        process = subprocess.Popen([sys.executable, "-c", SLEEP if code < 0 else f"exit({code})"])
        if code < 0:
            process.send_signal(-code)
        process.wait()
        return NodeProcess(tmp_path, "127.0.0.1:1", process)

    async def deaths() -> list[tuple[int, str]]:
        channel = open_channel("127.0.0.1:1")
        node = Watched(ended(-9), channel, restart=lambda: ended(1))
        seen = []
        for _ in range(2):
            await node.poll()
            seen.append((node.restarts, node.death))
        await channel.close()
        return seen

    assert asyncio.run(deaths()) == [(1, ""), (1, "exit code 1")]
