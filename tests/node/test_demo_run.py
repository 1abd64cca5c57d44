"""The whole demo over processes that only pretend to train: its verdict, and what it leaves."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.node import demo
from shoal.node.demo import DemoPlan, run_demo, stop_demo
from shoal.node.demo_processes import LOG_NAME, PID_NAME, NodeProcess, running_node
from shoal.node.errors import INTERNAL, OK, UserError
from shoal.node.identity import Identity
from shoal.node.ports import free_ports
from shoal.node.report import Losses

SERVE = (
    "import sys; from pathlib import Path; from tests.node.fake_node import serve_finished_node; "
    "serve_finished_node(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))"
)
DIE = "import sys; print('the disk is full'); sys.exit(4)"
GOOD_LOSSES = Losses(mesh=2.1, solo=(2.5, 2.4, 2.6, 2.5), start=5.5)


def pretend_node(directory: Path, *, address: str, max_rounds: int, dies: bool) -> NodeProcess:
    command = [sys.executable, "-c", DIE if dies else SERVE, str(directory), address]
    command += [str(max_rounds), "-m", "shoal.node", "run"]
    with (directory / LOG_NAME).open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    (directory / PID_NAME).write_text(str(process.pid))
    return NodeProcess(directory=directory, address=address, process=process)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace what needs real nodes: making the mesh, starting one, measuring."""

    def install(*, dead: str = "", losses: Losses = GOOD_LOSSES) -> None:
        def make_mesh(plan: DemoPlan) -> list[str]:
            for directory in plan.node_directories:
                directory.mkdir()
                Identity.create(directory / "identity.key")
                (directory / "node.toml").touch()
            return [f"127.0.0.1:{port}" for port in free_ports(plan.nodes)]

        def start(directory: Path, *, address: str, max_rounds: int) -> NodeProcess:
            dies = directory.name == dead
            return pretend_node(directory, address=address, max_rounds=max_rounds, dies=dies)

        async def evaluate(**_: object) -> tuple[Losses, str]:
            return losses, "The import statement"

        monkeypatch.setattr(demo, "_make_mesh", make_mesh)
        monkeypatch.setattr(demo, "start_node", start)

        async def join(contact: Path, directory: Path) -> float:
            del contact, directory
            return 8.5

        monkeypatch.setattr(demo, "evaluate", evaluate)
        monkeypatch.setattr(demo, "join_one_more", join)

    return install


def nobody_is_left(plan: DemoPlan) -> bool:
    return all(running_node(directory) is None for directory in plan.node_directories)


def test_a_good_run_exits_with_0_and_leaves_a_report_and_no_process(
    tmp_path: Path, pretend: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pretend()
    plan = DemoPlan(directory=tmp_path / "demo", rounds=24)
    assert asyncio.run(run_demo(plan)) == OK
    report = json.loads((plan.directory / "report.json").read_text())
    assert report["rounds"] == 24
    assert report["anchors_equal"] is True
    assert report["seconds_by_phase"].keys() == {"mesh", "start", "training", "join", "evaluation"}
    assert nobody_is_left(plan)
    output = capsys.readouterr().out
    assert "bit for bit" in output and "8.5 s from `shoal join`" in output


def test_a_demo_runs_again_over_the_one_before(
    tmp_path: Path, pretend: Callable[..., None]
) -> None:
    pretend()
    plan = DemoPlan(directory=tmp_path / "demo", rounds=24)
    assert asyncio.run(run_demo(plan)) == OK
    assert asyncio.run(run_demo(plan)) == OK


def test_a_node_that_dies_fails_the_demo_and_its_last_words_are_shown(
    tmp_path: Path, pretend: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(dead="node2")
    plan = DemoPlan(directory=tmp_path / "demo", rounds=24)
    assert asyncio.run(run_demo(plan)) == INTERNAL
    report = json.loads((plan.directory / "report.json").read_text())
    assert "node2: died with exit code 4" in report["problems"]
    assert len(report["checkpoints"]) == 3, "the other three went on"
    assert "the disk is full" in capsys.readouterr().out
    assert nobody_is_left(plan)


def test_a_mesh_that_learned_less_than_a_shard_alone_fails_the_demo(
    tmp_path: Path, pretend: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(losses=Losses(mesh=2.5, solo=(2.5, 2.4, 2.6, 2.5), start=5.5))
    plan = DemoPlan(directory=tmp_path / "demo", rounds=24)
    assert asyncio.run(run_demo(plan)) == INTERNAL
    assert "FAILED: the mesh's loss 2.5" in capsys.readouterr().out


# Leaving processes behind is the point here.
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_mesh_that_is_kept_runs_until_it_is_stopped(
    tmp_path: Path, pretend: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pretend()
    plan = DemoPlan(directory=tmp_path / "demo", nodes=4, rounds=24, keep=True)
    try:
        assert asyncio.run(run_demo(plan)) == OK
        output = capsys.readouterr().out
        assert f"shoal invite {plan.node_directories[0]}" in output
        assert "shoal demo --stop" in output
        assert not nobody_is_left(plan)
    finally:
        stop_demo(plan.directory)
    assert nobody_is_left(plan)


def test_an_interrupted_demo_leaves_no_process(
    tmp_path: Path, pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "watch_until", interrupt)
    plan = DemoPlan(directory=tmp_path / "demo", rounds=24)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(run_demo(plan))
    assert nobody_is_left(plan)


def test_a_directory_that_is_no_demo_is_refused(
    tmp_path: Path, pretend: Callable[..., None]
) -> None:
    pretend()
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match="not a demo"):
        asyncio.run(run_demo(DemoPlan(directory=tmp_path)))
    with pytest.raises(UserError, match="is not a demo"):
        stop_demo(tmp_path)
