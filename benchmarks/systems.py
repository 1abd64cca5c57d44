"""How each system of the comparison is started, and where its weights at the marks then lie.

A system is named as on the command line: "ddp", "fedavg-50" and "diloco-50" (plain torch with that
many local steps), "flower-50", "hivemind-50", "alone" (four workers that never talk), and "shoal".
Behind a colon stand mesh parameters that differ from the defaults: "shoal:local_steps=10".
Of these plain torch understands the optimiser's: "ddp:muon_scale=4,schedule_tokens=1638400".
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common_work import (
    BEGAN,
    CONFIG_FILE,
    LEARNING_RATE,
    SCHEDULE_TOKENS,
    SEQUENCE,
    WARMUP_STEPS,
    WORKERS,
    first_seed,
    read_batch,
    shard_name,
)
from benchmarks.mesh_end import MeshEnd
from benchmarks.network import INTERFACE, Star
from shoal.node.genesis import load_genesis
from shoal.node.snapshots import SNAPSHOTS

ROOT = Path(__file__).resolve().parent.parent
RIVALS = Path(os.environ.get("SHOAL_RIVALS", ROOT / "runs" / "rivals"))
MEET_PORT = 29500
MESH_PORT = 7400
FLOWER_PORT = 8000
FLOWER_START_SECONDS = 600.0
# What the SuperLink says when it takes calls.
FLOWER_READY = "Uvicorn running"
POLL_SECONDS = 0.2
# Checkpoints that each Shoal node keeps, and that its average is made of.
AVERAGED = 3
# How many steps a Shoal node's mean of its own weights goes back.
OWN_MEAN_STEPS = 40
# The member of the star that a server runs on, where there is one.
SERVER = WORKERS


class SystemFailed(Exception):
    """A system did not do its work; the message is one line."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one system."""

    system: str
    seed: int
    # Steps of each worker after which its weights are kept; the last is the end.
    marks: Sequence[int]
    # What common_work.prepare wrote, and where this run writes.
    work: Path
    out: Path

    @property
    def steps(self) -> int:
        """How many steps each worker makes."""
        return max(self.marks)


@dataclass(slots=True)
class Running:
    """A started system."""

    processes: "list[subprocess.Popen[bytes]]"
    # weights[mark][index]: the file with worker `index`'s own model, once it is there.
    weights: dict[int, list[Path]]
    # Whether everything that will be sent has been; asked again and again.
    done: Callable[[], bool]
    # How many steps a mark really is, where a round ends elsewhere.
    steps_at: dict[int, int]
    # When the workers began their first step, once they have; seconds since the epoch.
    began: Callable[[], float]
    # More to measure at each mark, by name: what each worker holds for the common model, and the
    # mean of its own over its last steps.
    more: dict[str, dict[int, list[Path]]] = dataclasses.field(default_factory=dict)
    # Ends those that do not end by themselves, and says what else is known.
    finish: Callable[[], dict[str, object]] = dict
    # Models that each worker can make after the end, of what then lies on its disk.
    averages: Callable[[], list[Path]] = list


def start(job: Job, star: Star) -> Running:
    """Start a system's processes in the members of `star`."""
    system, _, variant = job.system.partition(":")
    if system == "shoal":
        return _start_shoal(job, star, variant)
    if system == "alone":
        return _start_loops(job, star, "fedavg", job.steps + 1, variant)
    name, _, number = system.partition("-")
    local_steps = int(number or 1)
    if name in ("ddp", "fedavg", "diloco"):
        return _start_loops(job, star, name, local_steps, variant)
    if variant:
        raise SystemFailed(f"{name} is run as it comes, without {variant}")
    if name == "flower":
        return _start_flower(job, star, local_steps)
    if name == "hivemind":
        return _start_hivemind(job, star, local_steps)
    raise SystemFailed(f"there is no system {job.system}")


def launch(
    star: Star, index: int, command: Sequence[str], log: Path, **environment: str
) -> "subprocess.Popen[bytes]":
    """Start a process of a member, with one thread for arithmetic; what it says goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    inherited = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    with log.open("ab") as output:
        return subprocess.Popen(
            star.command(index, command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=inherited,
        )


def worker_weights(job: Job) -> dict[int, list[Path]]:
    """Where `common_work.Worker` keeps its weights."""
    return {
        mark: [job.out / f"worker{index}" / f"{mark}.f32" for index in range(WORKERS)]
        for mark in job.marks
    }


def began_at(job: Job) -> float:
    """When the first worker began to train."""
    return min(path.stat().st_mtime for path in job.out.glob(f"worker*/{BEGAN}"))


def _until_all_end(job: Job, processes: "list[subprocess.Popen[bytes]]") -> Running:
    """Workers that keep their own weights and end by themselves."""
    return Running(
        processes=processes,
        weights=worker_weights(job),
        done=lambda: all(process.poll() is not None for process in processes),
        steps_at={mark: mark for mark in job.marks},
        began=lambda: began_at(job),
    )


def _start_loops(job: Job, star: Star, method: str, local_steps: int, recipe: str) -> Running:
    processes = []
    for index in range(WORKERS):
        command = [sys.executable, "-m", "benchmarks.rivals.torch_loops"]
        command += ["--method", method, "--local-steps", str(local_steps), "--recipe", recipe]
        command += ["--steps", str(job.steps), "--index", str(index), "--seed", str(job.seed)]
        command += ["--meet", f"{star.address(0)}:{MEET_PORT}", "--interface", INTERFACE]
        command += ["--work", str(job.work), "--out", str(job.out)]
        processes.append(launch(star, index, command, job.out / f"worker{index}.log"))
    return _until_all_end(job, processes)


def _start_flower(job: Job, star: Star, local_steps: int) -> Running:
    """A SuperLink on a machine of its own, a SuperNode on each worker's, then `flwr run`."""
    programs = RIVALS / "flower" / "bin"
    home = job.out / "flower"
    home.mkdir(parents=True)
    address = f"{star.address(SERVER)}:{FLOWER_PORT}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "star"\n\n[superlink.star]\naddress = "{address}"\n'
        "insecure = true\n"
    )
    # The programs start each other by name.
    environment = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    link = [str(programs / "flower-superlink"), "--insecure"]
    link += ["--disable-runtime-dependency-installation"]
    link += ["--host", star.address(SERVER), "--port", str(FLOWER_PORT)]
    processes = [launch(star, SERVER, link, job.out / "superlink.log", **environment)]
    for index in range(WORKERS):
        node = [str(programs / "flower-supernode"), "--insecure", "--superlink", address]
        node += ["--node-config", f"partition-id={index} num-partitions={WORKERS}"]
        processes.append(launch(star, index, node, job.out / f"worker{index}.log", **environment))
    given = {"rounds": job.steps // local_steps, "local-steps": local_steps, "seed": job.seed}
    paths = {"work": f'"{job.work}"', "out": f'"{job.out}"'}
    config = " ".join(f"{key}={value}" for key, value in {**given, **paths}.items())
    _wait_until_said(FLOWER_READY, job.out / "superlink.log", FLOWER_START_SECONDS)
    app = [str(programs / "flwr"), "run", str(ROOT / "benchmarks" / "rivals" / "flower_app")]
    app += ["star", "--run-config", config]
    starter = launch(star, SERVER, app, job.out / "flwr.log", **environment)
    if starter.wait():
        raise SystemFailed((job.out / "flwr.log").read_text())
    last = job.out / "server" / f"{job.marks[-1]}.f32"
    return Running(
        processes=processes,
        weights={mark: [job.out / "server" / f"{mark}.f32"] * WORKERS for mark in job.marks},
        done=last.exists,
        steps_at={mark: mark for mark in job.marks},
        began=lambda: began_at(job),
        finish=lambda: _end(processes),
    )


def _start_hivemind(job: Job, star: Star, local_steps: int) -> Running:
    job.out.mkdir(parents=True)
    processes = []
    for index in range(WORKERS):
        command = [str(RIVALS / "hivemind" / "bin" / "python")]
        command += ["-m", "benchmarks.rivals.hivemind_worker", "--local-steps", str(local_steps)]
        command += ["--steps", str(job.steps), "--index", str(index), "--seed", str(job.seed)]
        command += ["--host", star.address(index), "--port", str(MEET_PORT)]
        command += ["--work", str(job.work), "--out", str(job.out)]
        processes.append(launch(star, index, command, job.out / f"worker{index}.log"))
    return _until_all_end(job, processes)


def _wait_until_said(words: str, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while words not in log.read_text(errors="replace"):
        if time.monotonic() > deadline:
            raise SystemFailed(f"{log} does not say {words!r} after {seconds:.0f} s")
        time.sleep(POLL_SECONDS)


def _end(processes: "Sequence[subprocess.Popen[bytes]]") -> dict[str, object]:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
    return {}


def _start_shoal(job: Job, star: Star, variant: str) -> Running:
    """`shoal init`, then `shoal run` for each node, as a person would."""
    batch = read_batch(job.work)
    mesh = _mesh_parameters(variant, batch * SEQUENCE)
    preset = job.out / "preset.toml"
    preset.parent.mkdir(parents=True, exist_ok=True)
    preset.write_text("[mesh]\n" + "".join(f"{key} = {value}\n" for key, value in mesh.items()))
    command = [sys.executable, "-m", "shoal.node"]
    init = [*command, "init", str(job.out), "--nodes", str(WORKERS), "--preset", str(preset)]
    init += ["--host", "10.88.{index}.1", "--port", str(MESH_PORT)]
    init += ["--data", str(job.work / shard_name("{index}"))]
    init += ["--model", str(job.work / CONFIG_FILE), "--seed", str(first_seed(job.seed))]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    nodes = [job.out / f"node{index}" for index in range(WORKERS)]
    genesis, _, _ = load_genesis(nodes[0] / "genesis")
    local_steps = genesis.parameters.worked_out(WORKERS).local_steps
    rounds = {mark: -(-mark // local_steps) for mark in job.marks}
    settings = {
        "train.batch": batch,
        "train.sequence": SEQUENCE,
        "train.max_rounds": max(rounds.values()),
        "train.snapshot_rounds": ",".join(map(str, rounds.values())),
        "train.own_mean_rounds": max(1, OWN_MEAN_STEPS // local_steps),
        "retention.keep_whole": AVERAGED,
        "log.format": "json",
    }
    flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    processes = [
        launch(star, index, [*command, "run", str(node), *flags], node / "node.log")
        for index, node in enumerate(nodes)
    ]

    def files(kind: str) -> dict[int, list[Path]]:
        return {
            mark: [node / SNAPSHOTS / f"{number}-{kind}.f32" for node in nodes]
            for mark, number in rounds.items()
        }

    mesh_end = MeshEnd(nodes, processes, star.command)
    return Running(
        processes=processes,
        weights=files("own"),
        more={"common": files("live"), "own_mean": files("mean")},
        done=mesh_end.reached,
        steps_at={mark: number * local_steps for mark, number in rounds.items()},
        began=mesh_end.began,
        finish=mesh_end.stop,
        averages=lambda: mesh_end.average(AVERAGED),
    )


def _mesh_parameters(variant: str, step_tokens: int) -> dict[str, str]:
    given = dict(item.split("=", 1) for item in variant.split(",") if item)
    return {
        "learning_rate": str(LEARNING_RATE),
        "warmup_tokens": str(WARMUP_STEPS * step_tokens * WORKERS),
        "schedule_tokens": str(SCHEDULE_TOKENS),
        **given,
    }
