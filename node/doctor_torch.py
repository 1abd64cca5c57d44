"""Whether torch loads, and whether the device that is set is there (`shoal doctor`)."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.node.doctor_findings import Finding, fine, not_checked, problem, warning
from shoal.node.doctor_machine import INSTALL, TRAINING_BYTES

# Besides weights, gradients and moments: the activations of a batch, at the very least.
_ACTIVATIONS_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """error: why torch does not load; slow: it was still loading when time was up.

    cuda: the version that it is built for, "" for none; gpus: name and memory of each that it can
    use; nvidia: whether this machine has an NVIDIA device; driver: its version, where it says so.
    """

    version: str = ""
    cuda: str = ""
    gpus: tuple[tuple[str, int], ...] = ()
    error: str = ""
    slow: bool = False
    nvidia: bool = False
    driver: str = ""


def torch_facts(timeout_s: float) -> TorchFacts:
    """Ask a process that loads torch, and kill it when time is up; blocks."""
    nvidia, driver = nvidia_device(), nvidia_driver()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "shoal.node.torch_probe"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return TorchFacts(slow=True, nvidia=nvidia, driver=driver)
    # What torch itself prints while it loads comes before.
    last = done.stdout.splitlines()[-1:]
    return _read(b"".join(last), done.returncode, nvidia, driver)


def _read(line: bytes, code: int, nvidia: bool, driver: str) -> TorchFacts:
    try:
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            return TorchFacts(error=str(answer["error"]), nvidia=nvidia, driver=driver)
        gpus = tuple((str(each["name"]), int(each["bytes"])) for each in answer["gpus"])
        return TorchFacts(
            str(answer["version"]), str(answer["cuda"]), gpus, nvidia=nvidia, driver=driver
        )
    except (ValueError, KeyError, TypeError):
        died = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return TorchFacts(
            error=f"the process that loaded it ended with {died}", nvidia=nvidia, driver=driver
        )


def nvidia_device() -> bool:
    """Whether there is an NVIDIA GPU here, by its device files (/dev/dxg: under WSL)."""
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))


def nvidia_driver(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of the NVIDIA driver; "" where there is none, or it does not say."""
    try:
        found = re.search(r"(?:Kernel Module|for x86_64)\s+([\d.]+)", path.read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def judge_torch(facts: TorchFacts) -> Finding:
    """Whether torch loads at all; a node needs it even where it does not train."""
    if facts.slow:
        return warning(
            "torch",
            "torch was still loading when time was up",
            "try again; a disk that is slow or busy makes every start of the node slow",
        )
    if facts.error:
        return problem("torch", f"torch does not load: {facts.error}", INSTALL)
    return fine("torch", f"{facts.version}, {f'CUDA {facts.cuda}' if facts.cuda else 'CPU only'}")


def judge_device(facts: TorchFacts, device: str, parameters: int, *, trains: bool) -> Finding:
    """Whether training can run on what `train.device` names."""
    if not trains:
        return not_checked("device", "this node does not train (train.enabled = false)")
    if facts.error or facts.slow:
        return not_checked("device", "torch did not load")
    wanted = device.startswith("cuda")
    if device == "cpu":
        return fine("device", "cpu")
    if not facts.gpus:
        return _no_gpu(facts, device) if wanted or facts.nvidia else fine("device", "cpu (auto)")
    index = int(device.partition(":")[2] or 0)
    if index >= len(facts.gpus):
        return problem(
            "device",
            f"train.device is {device}, and the last GPU is cuda:{len(facts.gpus) - 1}",
            f'set device = "cuda:{len(facts.gpus) - 1}" under [train], or auto',
        )
    name, size = facts.gpus[index]
    needed = TRAINING_BYTES * parameters + _ACTIVATIONS_BYTES
    if size < needed:
        return problem(
            "device",
            f"{name} has {size / (1 << 30):.1f} GiB, and the model needs {needed / (1 << 30):.1f}",
            'set device = "cpu" under [train], or use a larger GPU',
        )
    return fine("device", f"cuda:{index}, {name}, {size / (1 << 30):.0f} GiB")


def _no_gpu(facts: TorchFacts, device: str) -> Finding:
    """Why torch sees no GPU where one is asked for, or there."""
    asked = f"train.device is {device}, and " if device != "auto" else ""
    grade = problem if device != "auto" else warning
    if not facts.nvidia:
        return grade(
            "device", f"{asked}this machine has no NVIDIA GPU", 'set device = "auto" under [train]'
        )
    if not facts.cuda:
        return grade(
            "device",
            f"{asked}there is an NVIDIA GPU, but this torch ({facts.version}) is built for the CPU",
            "install a CUDA build of torch: see pytorch.org/get-started",
        )
    if not facts.driver:
        return grade(
            "device",
            f"{asked}there is an NVIDIA device, but no driver answers",
            "load the NVIDIA driver; in a container, start it with --gpus all",
        )
    return grade(
        "device",
        f"{asked}torch is built for CUDA {facts.cuda}, and finds no GPU with the NVIDIA driver "
        f"{facts.driver}",
        f"install a driver that knows CUDA {facts.cuda}, or a torch built for an older one",
    )
