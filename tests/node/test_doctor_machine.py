"""The machine, what is installed on it, its ports and torch: faults for real where they can be."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.node import doctor_machine
from shoal.node.doctor_findings import Verdict
from shoal.node.doctor_machine import (
    Library,
    MemoryFacts,
    at_least,
    container_limit,
    installed_libraries,
    judge_libraries,
    judge_memory,
    judge_open_files,
    judge_protobuf,
    judge_python,
    judge_shared_memory,
    judge_signatures,
    judge_sqlite,
    memory_facts,
    open_files_limit,
)
from shoal.node.doctor_mesh import MeshFacts, judge_commits, judge_quorum, judge_training
from shoal.node.doctor_ports import Port, PortFacts, dialable, judge_port, try_port
from shoal.node.doctor_torch import (
    TorchFacts,
    judge_device,
    judge_torch,
    nvidia_driver,
    torch_facts,
)

PROBLEM, WARNING, FINE, NOT_CHECKED = (
    Verdict.PROBLEM,
    Verdict.WARNING,
    Verdict.FINE,
    Verdict.NOT_CHECKED,
)
GIB = 1 << 30
ME, OTHER = bytes([1]) * 32, bytes([2]) * 32


def test_versions_are_compared_as_numbers() -> None:
    assert at_least("3.51.3", (3, 51, 3)) and at_least("3.54", (3, 51, 3))
    assert not at_least("3.9.9", (3, 51, 3)) and not at_least("3.51.2", (3, 51, 3))
    assert at_least("2.6.0+cpu", (2, 6)) and at_least("2.6", (2, 6, 0))
    assert judge_python((3, 10, 4)).verdict is PROBLEM
    assert judge_python(sys.version_info[:3]).verdict is FINE
    assert judge_sqlite("3.40.1").verdict is PROBLEM
    assert judge_protobuf("python", "7.36").verdict is WARNING
    assert judge_protobuf("upb", "7.36").verdict is FINE


def test_libraries_are_those_that_shoal_asks_for() -> None:
    found = {each.name: each for each in installed_libraries()}
    assert {"grpcio", "protobuf", "torch", "apsw", "pynacl"} <= found.keys()
    assert "pytest" not in found, "what only developers need is not looked at"
    assert judge_libraries(found.values()).verdict is FINE
    gone = judge_libraries([Library("torch", "2.6", "")])
    assert gone.verdict is PROBLEM and "not installed: torch" in gone.what
    old = judge_libraries([Library("grpcio", "1.85.1", "1.62.0")])
    assert old.verdict is PROBLEM and "grpcio 1.62.0 (at least 1.85.1)" in old.what
    assert judge_libraries([]).verdict is NOT_CHECKED


def test_signatures_of_one_library_are_checked_by_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert doctor_machine.check_signatures() == ""
    monkeypatch.setattr("shoal.node.identity.verify", lambda *_: True)
    error = doctor_machine.check_signatures()
    assert "accepts a bad signature" in error
    assert judge_signatures(error, "").verdict is PROBLEM


def test_memory_of_the_machine_and_of_its_container(tmp_path: Path) -> None:
    real = memory_facts()
    assert real.total >= real.available > 0

    def judged(parameters: int, facts: MemoryFacts, running: bool | None = False) -> Verdict:
        return judge_memory(facts, parameters, trains=True, running=running).verdict

    assert judged(10_000_000, MemoryFacts(16 * GIB, 8 * GIB)) is FINE
    assert judged(10_000_000, MemoryFacts(16 * GIB, GIB)) is WARNING
    assert judged(10_000_000, MemoryFacts(16 * GIB, GIB), running=True) is FINE
    assert judged(500_000_000, MemoryFacts(16 * GIB, 16 * GIB)) is PROBLEM
    assert judged(10_000_000, MemoryFacts(16 * GIB, 8 * GIB, limit=GIB)) is PROBLEM
    files = {"2": tmp_path / "memory.max", "1": tmp_path / "limit"}
    assert container_limit(files) == 0
    files["2"].write_text("max\n")
    files["1"].write_text(f"{2**63 - 4096}\n")
    assert container_limit(files) == 0
    files["2"].write_text(f"{GIB}\n")
    assert container_limit(files) == GIB


def test_shared_memory_as_containers_have_it() -> None:
    small = MemoryFacts(GIB, GIB, shared_total=64 << 20, shared_free=64 << 20)
    found = judge_shared_memory(small, 10_000_000, trains=True, running=False)
    assert found.verdict is PROBLEM and "--shm-size 216m" in found.fix
    assert judge_shared_memory(small, 1000, trains=True, running=False).verdict is FINE
    assert judge_shared_memory(small, 10**9, trains=False, running=False).verdict is NOT_CHECKED
    none = MemoryFacts(GIB, GIB)
    assert judge_shared_memory(none, 10**9, trains=True, running=False).verdict is FINE


def test_open_files() -> None:
    assert open_files_limit() > 0
    assert [judge_open_files(n).verdict for n in (64, 512, 1024, 1 << 62)] == [
        PROBLEM,
        WARNING,
        FINE,
        FINE,
    ]


@contextmanager
def other_process() -> Iterator[tuple[str, int]]:
    """Another process that listens; gives where, and its id."""
    code = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 0));"
        "print(s.getsockname()[1], flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{int(process.stdout.readline())}", process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_port_that_another_process_has() -> None:
    with other_process() as (address, pid):
        facts = try_port("listen", address)
        assert facts.port is Port.TAKEN
        found = judge_port(facts, ME, running=False)
        assert found.verdict is PROBLEM
        assert f"{address} is taken by another process" in found.what and f"pid {pid}" in found.what
    free = try_port("listen", address)
    assert free.port is Port.FREE
    assert judge_port(free, ME, running=False).verdict is FINE
    assert judge_port(free, ME, running=True).verdict is WARNING, "it runs, and not there"


def test_addresses_that_nobody_can_listen_on_here() -> None:
    assert try_port("listen", "192.0.2.1:7400").port is Port.NOT_OURS
    assert try_port("listen", "nowhere.invalid:7400").port is Port.UNKNOWN_NAME
    assert try_port("join", "").port is Port.OFF
    for port in (Port.NOT_OURS, Port.UNKNOWN_NAME, Port.DENIED):
        assert judge_port(PortFacts("listen", "x:1", port), ME, running=False).verdict is PROBLEM
    assert judge_port(PortFacts("join", "", Port.OFF), ME, running=None).verdict is FINE
    assert dialable("0.0.0.0:7400") == "127.0.0.1:7400" and dialable("[::]:1") == "[::1]:1"


def test_a_taken_port_is_fine_where_it_is_this_node_that_has_it() -> None:
    taken = PortFacts("listen", "a:1", Port.TAKEN, owner=ME)
    assert judge_port(taken, ME, running=True).verdict is FINE
    found = judge_port(taken, OTHER, running=False)
    assert found.verdict is PROBLEM and "node 01010101" in found.what


def torch_that(tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this is what other processes load as torch."""
    (tmp_path / "torch.py").write_text(body)
    paths = [str(tmp_path), *(path for path in sys.path if path)]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))


def test_the_torch_of_this_machine() -> None:
    facts = torch_facts(120.0)
    assert facts.version and not facts.error
    assert judge_torch(facts).verdict is FINE


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "No module named 'torch'"),
        ("import ctypes; ctypes.CDLL('libcudart.so.0')", "libcudart.so.0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "signal SIGILL"),
        ("import sys; print('noise'); sys.stdout.flush()", "exit code"),
    ],
)
def test_a_torch_that_does_not_load_is_a_finding(
    body: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_that(tmp_path, body, monkeypatch)
    facts = torch_facts(60.0)
    found = judge_torch(facts)
    assert found.verdict is PROBLEM and words in found.what
    assert judge_device(facts, "cuda", 1, trains=True).verdict is NOT_CHECKED


def test_a_torch_that_takes_too_long_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_that(tmp_path, "import time; time.sleep(60)", monkeypatch)
    facts = torch_facts(1.0)
    assert facts.slow and judge_torch(facts).verdict is WARNING


def test_devices_that_are_set_and_not_there(tmp_path: Path) -> None:
    cpu = TorchFacts(version="2.13.0+cpu")
    gpu = TorchFacts(version="2.13.0", cuda="12.8", gpus=(("H100", 80 * GIB),), nvidia=True)

    def judged(facts: TorchFacts, device: str, parameters: int = 1000) -> tuple[Verdict, str]:
        found = judge_device(facts, device, parameters, trains=True)
        return found.verdict, found.what + " " + found.fix

    assert judged(cpu, "auto")[0] is FINE and judged(cpu, "cpu")[0] is FINE
    verdict, words = judged(cpu, "cuda:1")
    assert verdict is PROBLEM and "no NVIDIA GPU" in words
    assert judged(gpu, "auto")[0] is FINE and judged(gpu, "cuda:0")[0] is FINE
    verdict, words = judged(gpu, "cuda:3")
    assert verdict is PROBLEM and "the last GPU is cuda:0" in words
    verdict, words = judged(gpu, "cuda", 6 * GIB)
    assert verdict is PROBLEM and "80.0 GiB" in words
    unused = TorchFacts(version="2.13.0+cpu", nvidia=True, driver="570.1")
    assert judged(unused, "auto")[0] is WARNING and "built for the CPU" in judged(unused, "auto")[1]
    assert judged(unused, "cuda")[0] is PROBLEM
    old = TorchFacts(version="2.13.0", cuda="13.0", nvidia=True, driver="470.1")
    verdict, words = judged(old, "cuda")
    assert verdict is PROBLEM and "470.1" in words and "CUDA 13.0" in words
    bare = TorchFacts(version="2.13.0", cuda="13.0", nvidia=True)
    assert "--gpus all" in judged(bare, "auto")[1]
    assert judge_device(gpu, "cuda", 1, trains=False).verdict is NOT_CHECKED
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.172.08  Release Build\n"
    )
    assert nvidia_driver(tmp_path / "version") == "570.172.08"
    assert nvidia_driver(tmp_path / "nothing") == ""


def mesh(**changes: object) -> MeshFacts:
    values: dict[str, object] = {
        "role": "validator",
        "validators": 4,
        "quorum": 3,
        "reachable": 4,
        "missing": (),
        "view_active": True,
        "commit_s": 5.0,
        "uptime_s": 600.0,
        "rounds_per_checkpoint": 8,
        "round_s": 2.0,
        "training": "training",
        **changes,
    }
    return MeshFacts(**values)  # type: ignore[arg-type]


def test_a_quorum_or_none() -> None:
    assert judge_quorum(mesh()).verdict is FINE
    edge = judge_quorum(mesh(reachable=3, missing=("aaaa0000",)))
    assert edge.verdict is WARNING and "aaaa0000" in edge.fix
    below = judge_quorum(mesh(reachable=2, missing=("aaaa0000", "bbbb0000")))
    assert below.verdict is PROBLEM and "2 of 4" in below.what
    assert judge_quorum(mesh(role="joining")).verdict is WARNING


def test_a_young_node_still_makes_its_links_unless_the_others_are_silent() -> None:
    young = mesh(reachable=1, missing=("aaaa0000", "bbbb0000", "cccc0000"), uptime_s=3.0)
    started = judge_quorum(young, silent={"cccc0000"})
    assert started.verdict is WARNING and "started 3 s ago" in started.what
    assert judge_quorum(young, silent={"bbbb0000", "cccc0000"}).verdict is PROBLEM
    assert judge_quorum(replace(young, uptime_s=60.0)).verdict is PROBLEM


def test_commits_that_do_not_come() -> None:
    assert judge_commits(mesh()).verdict is FINE
    assert judge_commits(mesh(commit_s=119.0)).verdict is FINE
    late = judge_commits(mesh(commit_s=200.0))
    assert late.verdict is WARNING and "usual is about 16 s" in late.what
    assert judge_commits(mesh(commit_s=200.0, round_s=60.0)).verdict is FINE
    assert judge_commits(mesh(commit_s=-1.0)).verdict is WARNING
    assert judge_commits(mesh(commit_s=-1.0, uptime_s=20.0)).verdict is FINE
    assert judge_commits(mesh(commit_s=9e9, training="finished")).verdict is FINE
    assert "the view is changing" in judge_commits(mesh(view_active=False)).what


def test_training_that_has_failed() -> None:
    assert judge_training(mesh()).verdict is FINE
    failed = judge_training(mesh(training="failed: out of memory"))
    assert failed.verdict is PROBLEM and "out of memory" in failed.what
