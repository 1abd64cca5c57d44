"""`shoal demo`: four real nodes on this machine train one model, and a report says how it went.

Nothing here is special to the nodes: they are started as a person would start them and watched
through the same Inspect service that `shoal status` uses. The demo makes the mesh, watches it
until the cut that holds the last round is committed, measures the model against each shard
trained alone, and judges.
"""

import asyncio
import hashlib
import os
import platform
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

import shoal
from shoal.node.addresses import INSPECT_PORT_ABOVE
from shoal.node.checkpoint_dirs import checkpoint_directories
from shoal.node.demo_evaluation import evaluate, evaluation_progress
from shoal.node.demo_join import NAME, join_one_more
from shoal.node.demo_processes import claim_directory, log_tail, start_node, stop_nodes
from shoal.node.demo_watch import Display, Settled, Watched, all_answer, follow, watch_until
from shoal.node.errors import INTERNAL, OK, UserError
from shoal.node.inspect_client import open_channel
from shoal.node.report import Losses, Outcome, build_report, failures, report_view, write_report
from shoal.node.views import make_console

# The size of the demo: what fits into five minutes on two cores, solo runs included.
ROUNDS = 24
LOCAL_STEPS = 6
# In so few rounds every value should be said at least twice.
KEPT_PER_CHUNK = 512
# Batch times sequence, as a node's settings have them unless told otherwise.
TOKENS_PER_STEP = 8 * 128
# Well below a third of the rounds: the nodes are never in step, so a last cut may not come about.
ROUNDS_PER_CHECKPOINT = 6
# Ends a demo that hangs, not one on a busy machine. All nodes load torch at the same time.
START_SECONDS = 180.0
# The same, until every round is made and committed.
TRAIN_SECONDS = 900.0

LOG_LINES_SHOWN = 8
MARKER = "demo.marker"
REPORT = "report.json"
SCRATCH = "evaluation"
# What a demo writes beside the marker, and therefore what the next one takes away.
OURS = ("node*", NAME, "checkpoint*", SCRATCH, REPORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """What was asked for."""

    directory: Path
    nodes: int = 4
    rounds: int = ROUNDS
    train_seconds: float = TRAIN_SECONDS
    seed: int = 0
    keep: bool = False

    @property
    def node_directories(self) -> list[Path]:
        return [self.directory / f"node{index}" for index in range(self.nodes)]


@dataclass(slots=True)
class Run:
    """What is known so far: how long each part took, and what went wrong."""

    seconds_by_phase: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    # As the four had it before one more came: the newest checkpoint, and each one's anchor digest.
    checkpoint: Path | None = None
    anchor_files: tuple[str, ...] = ()
    join_seconds: float | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a part by the clock on the wall."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds_by_phase[name] = time.monotonic() - start


async def run_demo(plan: DemoPlan) -> int:
    """Run the whole demo; returns the exit code. Raises UserError where it cannot begin."""
    console, run = make_console(), Run()
    task = asyncio.current_task()
    assert task is not None
    # A CI job that is stopped must not leave four trainers behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    claim_directory(plan.directory, marker=MARKER, ours=OURS)
    console.print(f"demo in {plan.directory}: {plan.nodes} nodes, {plan.rounds} rounds each")
    with run.phase("mesh"):
        addresses = await asyncio.to_thread(_make_mesh, plan)
    watched = await _train(plan, addresses, console, run)
    with run.phase("evaluation"):
        losses, sample = await _measure(plan, console, run)
    outcome = Outcome(
        replies=tuple(each.reply for each in watched if each.reply is not None),
        anchor_files=run.anchor_files,
        join_seconds=run.join_seconds,
        rounds_planned=plan.rounds,
        losses=losses,
        sample=sample,
        seconds_by_phase=run.seconds_by_phase,
        environment=_environment(),
        problems=tuple(run.problems),
    )
    report = build_report(outcome)
    report["restarts"] = [each.restarts for each in watched]
    write_report(plan.directory / REPORT, report)
    console.print(report_view(report))
    console.print(f"report: {plan.directory / REPORT}")
    if plan.keep:
        _leave_running(plan, addresses, console)
    return INTERNAL if failures(report) else OK


def stop_demo(directory: Path) -> int:
    """End the processes of a demo that was left running; returns how many there were."""
    if not (directory / MARKER).is_file():
        raise UserError(f"{directory} is not a demo; name it with --directory")
    return stop_nodes(directory.glob("node*"))


def _make_mesh(plan: DemoPlan) -> list[str]:
    """Create the nodes' directories; returns the addresses where they can be inspected."""
    # These load torch, which `shoal demo --stop` has no use for.
    from shoal.gossip.density import budget_for
    from shoal.node.founding import create_mesh
    from shoal.node.parameters import MeshParameters
    from shoal.node.ports import free_ports

    ports = free_ports(plan.nodes)
    # A short run deserves a whole schedule: warm up over the first part, cool down to the end.
    tokens = plan.nodes * plan.rounds * LOCAL_STEPS * TOKENS_PER_STEP
    create_mesh(
        plan.directory,
        nodes=plan.nodes,
        host="127.0.0.1",
        ports=ports,
        data="builtin",
        model_config=None,
        parameters=MeshParameters(
            local_steps=LOCAL_STEPS,
            rounds_per_checkpoint=ROUNDS_PER_CHECKPOINT,
            budget=budget_for(KEPT_PER_CHUNK, plan.nodes),
            warmup_tokens=tokens // 20,
            schedule_tokens=tokens,
        ),
        seed=plan.seed,
        names=[directory.name for directory in plan.node_directories],
    )
    return [f"127.0.0.1:{port + INSPECT_PORT_ABOVE}" for port in ports]


async def _train(
    plan: DemoPlan, addresses: Sequence[str], console: Console, run: Run
) -> list[Watched]:
    """Run the nodes until the last cut is committed; returns them, stopped."""
    async with _running(plan, addresses) as watched:
        with Display(console, rounds=plan.rounds).shown() as show:
            with run.phase("start"):
                problem = await watch_until(
                    all_answer, watched, seconds=START_SECONDS, show=show, what="starting"
                )
            if not problem:
                with run.phase("training"):
                    problem = await watch_until(
                        Settled(plan.rounds),
                        watched,
                        seconds=plan.train_seconds,
                        show=show,
                        what="training",
                    )
            _look_at_disks(plan, run)
            if not problem:
                with run.phase("join"):
                    problem = await _join(plan, console, run)
    if problem:
        run.problems.append(problem)
    for each in watched:
        if each.death or each.training_failed or each.reply is None:
            how = each.death and f"died with {each.death}"
            failed = each.reply is not None and f"training {each.reply.training.state}"
            run.problems.append(f"{each.node.name}: {how or failed or 'never answered'}")
            _show_last_words(each.node.directory, console)
    return watched


def _show_last_words(node: Path, console: Console) -> None:
    console.print(f"the last lines of {node}/node.log:")
    for line in log_tail(node, lines=LOG_LINES_SHOWN):
        console.print(f"  {line}", markup=False)


def _look_at_disks(plan: DemoPlan, run: Run) -> None:
    """Keep what was trained: the mesh goes on when one more joins, and forgets old checkpoints."""
    kept = [checkpoint_directories(node) for node in plan.node_directories]
    newest = max(kept, key=lambda found: max(found, default=0))
    if newest:
        height, checkpoint = newest.popitem()
        run.checkpoint = plan.directory / f"checkpoint{height}"
        # Files of a checkpoint never change, so a second name for each is a copy.
        shutil.copytree(checkpoint, run.checkpoint, copy_function=os.link)
    run.anchor_files = tuple(map(_anchor_digest, plan.node_directories))


async def _join(plan: DemoPlan, console: Console, run: Run) -> str:
    """One more node joins; returns what went wrong, or nothing."""
    directory = plan.directory / NAME
    try:
        run.join_seconds = await join_one_more(plan.node_directories[0], directory)
    except UserError as error:
        _show_last_words(directory, console)
        return str(error)
    return ""


@asynccontextmanager
async def _running(plan: DemoPlan, addresses: Sequence[str]) -> AsyncIterator[list[Watched]]:
    """The nodes as processes; ended in order when the block ends, however it ends."""
    watched: list[Watched] = []
    try:
        for directory, address in zip(plan.node_directories, addresses, strict=True):
            start = partial(start_node, directory, address=address, max_rounds=plan.rounds)
            watched.append(Watched(node=start(), channel=open_channel(address), restart=start))
        yield watched
    finally:
        stop_nodes(plan.node_directories)
        for each in watched:
            each.node.process.wait()
            await each.channel.close()


async def _measure(plan: DemoPlan, console: Console, run: Run) -> tuple[Losses | None, str]:
    """The losses and a sample; a failure becomes a problem of the run."""
    if run.checkpoint is None:
        run.problems.append("no checkpoint was committed")
        return None, ""
    scratch = plan.directory / SCRATCH
    title = "each shard alone, to compare"
    following = asyncio.create_task(
        follow(console, title, lambda: evaluation_progress(scratch)), name="follow"
    )
    try:
        return await evaluate(
            nodes=plan.node_directories,
            checkpoint=run.checkpoint,
            scratch=scratch,
            rounds=plan.rounds,
        )
    except UserError as error:
        run.problems.append(f"evaluation: {error}")
        return None, ""
    finally:
        following.cancel()
        # Its spinner must be gone before anything else is printed.
        await asyncio.wait((following,))


def _leave_running(plan: DemoPlan, addresses: Sequence[str], console: Console) -> None:
    """Start the nodes again from their own disks, without an end, and say how to use them."""
    for directory, address in zip(plan.node_directories, addresses, strict=True):
        start_node(directory, address=address, max_rounds=0)
    console.print("\nthe mesh was started again and goes on:")
    for directory, address in zip(plan.node_directories, addresses, strict=True):
        console.print(f"  {directory.name}  {address}  log: {directory}/node.log")
    first = plan.node_directories[0]
    console.print(f"watch:  shoal status {first} --watch", soft_wrap=True)
    console.print(f"invite: shoal invite {first}", soft_wrap=True)
    console.print("join:   shoal join --token LINE --dir runs/fifth", soft_wrap=True)
    console.print(f"stop:   shoal demo --stop --directory {plan.directory}")


def _anchor_digest(node: Path) -> str:
    """SHA-256 of the newest checkpoint's anchor, chunk after chunk by name; "" where none is."""
    found = checkpoint_directories(node)
    if not found:
        return ""
    digest = hashlib.sha256()
    try:
        chunks = sorted((found[max(found)] / "chunks").iterdir())
        for chunk in chunks:
            digest.update(chunk.read_bytes())
    except OSError:
        return ""
    return digest.hexdigest()


def _environment() -> dict[str, str | int]:
    import torch

    return {
        "shoal": shoal.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpus": os.cpu_count() or 0,
    }
