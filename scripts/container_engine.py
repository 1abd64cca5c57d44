"""A container engine and a base image, also where there are none: what compose_test.py stands on.

Where no engine answers, root gets one of its own for the time of the test, from the distribution's
packages, with its storage in a folder that is removed afterwards and the machine's network rules
put back. Where the public base image cannot be pulled, a minimal Debian made by debootstrap stands
for it. Where not even that can be done, Skipped says why.

SHOAL_COMPOSE_TEST_DIR keeps the engine's storage (gigabytes) and the stand-in between runs;
without it, only the stand-in is kept, in ~/.cache. Needs nothing but the standard library.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PUBLIC_BASE = "python:3.11-slim"
STAND_IN = "shoal-compose-test/base"
BUILDER_BASE = "shoal-compose-test/builder-base"
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STARTED = time.monotonic()


class Skipped(Exception):
    """This machine cannot run containers; the text says why."""


class Failed(Exception):
    """The mesh did not do what it promises; the text says what."""


def say(text: str) -> None:
    """Print one line with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def run(*command: str, timeout_s: float = 120, show: bool = False) -> str:
    """Run a command in the repository; return its output, or raise Failed with its last lines."""
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=None if show else subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"`{' '.join(command)}` did not end within {timeout_s:.0f} s") from None
    except OSError as error:
        raise Failed(f"`{command[0]}` cannot be run: {error.strerror}") from None
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout or "").strip().splitlines()[-15:])
        raise Failed(f"`{' '.join(command)}` exited {done.returncode}\n{last}".strip())
    return done.stdout or ""


def works(*command: str, timeout_s: float = 120) -> bool:
    """Whether a command can be run and succeeds."""
    try:
        run(*command, timeout_s=timeout_s)
    except Failed:
        return False
    return True


def engine_answers() -> bool:
    """Whether `docker` has a server to talk to."""
    return works("docker", "version", "--format", "{{.Server.Version}}", timeout_s=20)


def need_program(program: str, package: str) -> None:
    """Install a distribution package when its program is missing; raises Skipped."""
    if shutil.which(program):
        return
    if not shutil.which("apt-get"):
        raise Skipped(f"{program} is not installed, and there is no apt-get to install it with")
    say(f"installing the distribution's {package}")
    os.environ.setdefault("DEBIAN_FRONTEND", "noninteractive")
    try:
        run("apt-get", "update", timeout_s=300)
        run("apt-get", "install", "--yes", "--no-install-recommends", package, timeout_s=600)
    except Failed as error:
        raise Skipped(f"{package} cannot be installed: {error}") from None


@contextmanager
def network_rules_kept() -> Iterator[None]:
    """Put the packet filter and the forwarding switch back; an engine that ends leaves its own."""
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    switch = forwarding.read_text()
    for table in ("filter", "nat"):
        # To list a table makes it exist, and only a table that exists is saved, also when empty.
        works("iptables", f"--table={table}", "--list-rules")
    rules = run("iptables-save") if works("iptables-save") else None
    try:
        yield
    finally:
        if rules is not None:
            subprocess.run(("iptables-restore",), input=rules, text=True, timeout=60, check=False)
        forwarding.write_text(switch)
        works("ip", "link", "delete", "docker0")


@contextmanager
def own_engine(folder: Path) -> Iterator[None]:
    """Run an engine with everything that it writes in `folder`; raises Skipped."""
    address = f"unix://{folder}/docker.sock"
    for driver in ("overlay2", "vfs"):
        command = (
            "dockerd",
            f"--host={address}",
            f"--data-root={folder}/data-{driver}",
            f"--exec-root={folder}/exec",
            f"--pidfile={folder}/dockerd.pid",
            f"--storage-driver={driver}",
        )
        log = folder / f"dockerd-{driver}.log"
        with log.open("wb") as output:
            # A session of its own: an interrupt from the keyboard must not end it before the mesh.
            server = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        os.environ["DOCKER_HOST"] = address
        try:
            deadline = time.monotonic() + 60
            while server.poll() is None and time.monotonic() < deadline:
                if engine_answers():
                    say(f"started an engine of our own, process {server.pid}, storage {driver}")
                    yield
                    return
                time.sleep(0.5)
        finally:
            server.terminate()
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            del os.environ["DOCKER_HOST"]
    reason = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise Skipped(f"dockerd does not start here: {' '.join(reason)}")


def find_engine(stack: ExitStack) -> None:
    """Use the engine that answers, or start one until `stack` is closed; raises Skipped."""
    if engine_answers():
        say("using the container engine that answers here")
        return
    if os.geteuid() != 0:
        raise Skipped("no container engine answers, and only root can start one")
    need_program("dockerd", "docker.io")
    if engine_answers():
        say("the installation started a container engine")
        return
    kept = os.environ.get("SHOAL_COMPOSE_TEST_DIR")
    folder = Path(kept).resolve() / "engine" if kept else Path(tempfile.mkdtemp(prefix="shoal-"))
    folder.mkdir(parents=True, exist_ok=True)
    if not kept:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
    stack.enter_context(network_rules_kept())
    stack.enter_context(own_engine(folder))


def find_compose() -> tuple[str, ...]:
    """Return the command that compose is called by; raises Skipped."""
    if works("docker", "compose", "version"):
        return ("docker", "compose")
    need_program("docker-compose", "docker-compose")
    return ("docker-compose",)


def find_base() -> str:
    """Return the public base image, or the name of the stand-in where it cannot be had."""
    if works("docker", "image", "inspect", PUBLIC_BASE):
        return PUBLIC_BASE
    if works("docker", "pull", PUBLIC_BASE, timeout_s=300):
        return PUBLIC_BASE
    say(f"*** {PUBLIC_BASE} CANNOT BE PULLED HERE: a debootstrap of Debian stands for it ***")
    if not works("docker", "image", "inspect", STAND_IN):
        archive = make_stand_in()
        run("docker", "import", f"--change=ENV PATH={SEARCH_PATH}", str(archive), STAND_IN)
    return STAND_IN


def make_stand_in() -> Path:
    """Return a tar archive of a minimal Debian with Python, made on the first run."""
    default = Path.home() / ".cache" / "shoal-compose-test"
    cache = Path(os.environ.get("SHOAL_COMPOSE_TEST_DIR") or default).resolve()
    archive = cache / "base-bookworm-1.tar"
    if archive.exists():
        return archive
    if os.geteuid() != 0:
        raise Skipped(f"{PUBLIC_BASE} cannot be pulled, and only root can make a stand-in for it")
    need_program("debootstrap", "debootstrap")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shoal-base-") as folder:
        packages = "--include=ca-certificates,python3-pip,python3-venv"
        run("debootstrap", "--variant=minbase", packages, "bookworm", folder, timeout_s=900)
        for leftover in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(Path(folder, leftover))
        unfinished = archive.with_suffix(".part")
        run("tar", "--create", f"--file={unfinished}", f"--directory={folder}", ".")
        unfinished.rename(archive)
    return archive


def pip_settings() -> dict[str, str]:
    """Return what this machine tells pip: "cert", "index-url", "find-links" and so on."""
    settings = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'\"")
    return settings


def build_arguments(base: str) -> dict[str, str]:
    """Return the build arguments for this machine, having made the builder's base for it.

    What pip is told here (a certificate authority, an index, a folder with a torch wheel) goes into
    a variant of the base that only the builder stage stands on, so the image gets none of it.
    """
    settings = pip_settings()
    arguments = {"BASE": base}
    if index := os.environ.get("SHOAL_TORCH_CPU_INDEX"):
        arguments["TORCH_INDEX"] = index
    lines = [f"FROM {base}"]
    with tempfile.TemporaryDirectory(prefix="shoal-builder-") as folder:
        if authority := settings.get("cert"):
            shutil.copy(authority, Path(folder, "authority.crt"))
            lines += ["COPY authority.crt /authority.crt", "ENV PIP_CERT=/authority.crt"]
        if index := settings.get("index-url"):
            lines.append(f"ENV PIP_INDEX_URL={index}")
        found = [Path(link) for link in settings.get("find-links", "").split()]
        wheels = [wheel for link in found for wheel in link.glob("torch-*.whl")]
        if wheels:
            say("torch comes from a wheel on this machine, not from the index of its CPU builds")
            arguments["TORCH_INDEX"] = index or "https://pypi.org/simple"
            for wheel in wheels:
                shutil.copy(wheel, folder)
            lines += ["COPY *.whl /wheels/", "ENV PIP_FIND_LINKS=/wheels"]
        if len(lines) > 1:
            Path(folder, "Dockerfile").write_text("\n".join(lines) + "\n")
            run("docker", "build", "--quiet", f"--tag={BUILDER_BASE}", folder, timeout_s=600)
            arguments["BUILDER_BASE"] = BUILDER_BASE
    return arguments
