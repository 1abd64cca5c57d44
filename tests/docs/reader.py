"""Somebody who does what a page says, command by command, as it stands there.

What stays in a terminal of its own is left running, and interrupted at the end. Nothing may fail.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from shoal.node.config import load_settings
from shoal.node.errors import UserError
from shoal.node.identity import Identity
from tests.docs.blocks import Block, without_comment
from tests.docs.place import Place
from tests.integration.processes import status

COMMAND_S_MAX = 180
PASSPHRASE = "a shoal has no leader"


class Terminal:
    """A command that goes on until it is interrupted."""

    def __init__(self, command: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.command, self.log = command, log
        self._process = process

    def shows(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what it is started for; it may not end before."""
        deadline = time.monotonic() + COMMAND_S_MAX
        while not condition():
            assert self.alive, f"it ended: {self.command}\n{self.shows()[-3000:]}"
            assert time.monotonic() < deadline, f"in vain: {self.command}\n{self.shows()[-3000:]}"
            time.sleep(0.2)

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        if self.alive:
            os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(timeout=COMMAND_S_MAX)

    def kill(self) -> None:
        if self.alive:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Reader:
    """Follows pages; raises AssertionError where a page does not do what it says."""

    def __init__(self, home: Path, elsewhere: Mapping[str, str]) -> None:
        """elsewhere: commands that are not typed here, and why."""
        self.home = home
        self.place = Place(home)
        # What was typed, and what came.
        self.typed: dict[str, str] = {}
        self._elsewhere = elsewhere
        self._output = ""
        self._newcomer = home
        self._terminals: list[Terminal] = []

    def follow(self, block: Block) -> None:
        """Do what one block says, or look whether what it shows is so."""
        if block.title:
            (self.home / block.title).write_text(self.place.translated(block.text))
        elif block.language == "sh":
            for command in block.commands():
                self._type_with_its_likes(command)
        elif block.language == "python":
            self._run([sys.executable, "-"], given=self.place.translated(block.text))
        elif block.language == "toml":
            _is_a_node_toml(block, self.home)
        elif block.language == "text":
            for line in filter(str.strip, block.text.splitlines()):
                pattern = re.escape(" ".join(line.split())).replace("…", ".*")
                said = [" ".join(each.split()) for each in self._output.splitlines()]
                found = any(re.fullmatch(pattern, each) for each in said)
                assert found, f"{block.page}:{block.line} shows {line!r}, not:\n{self._output}"

    def close(self) -> None:
        """Interrupt everything that still runs; none of it may have ended badly."""
        try:
            for terminal in reversed(self._terminals):
                code = terminal.interrupt()
                assert code in (0, 130), f"{code}: {terminal.command}\n{terminal.shows()[-3000:]}"
                assert "Traceback" not in terminal.shows(), terminal.command
        finally:
            for terminal in self._terminals:
                terminal.kill()

    def _type_with_its_likes(self, command: str) -> None:
        """One line; where its comment says so, the same for the other nodes of the mesh too."""
        if command.startswith("# Ctrl-C in the terminal of "):
            self._end(command.rpartition(" ")[2])
            return
        line = without_comment(command)
        if line.startswith("#") or line in self._elsewhere:
            return
        nodes = 4 if "four terminals" in command else 3 if "a quorum has to" in command else 1
        for wait in [self._type(line.replace("node0", f"node{each}")) for each in range(nodes)]:
            wait()
        if line.startswith("shoal promote") and nodes > 1:
            self._until_it_votes()

    def _type(self, line: str) -> Callable[[], None]:
        """Type it; what stays open is returned, to be waited for."""
        done = line in self.typed and not AGAIN.match(line)
        running = any(each.command == line and each.alive for each in self._terminals)
        if running or (done and not line.startswith("shoal run ")):
            self._output = self.typed.get(line, "")
            return _nothing
        self._wait_for_what_it_names(line)
        command = self.place.translated(line)
        for part, ready in STAYS_OPEN.items():
            if part in line:
                self.typed[line] = ""
                return partial(ready, self, command, self._open(line, command))
        self._run(["bash", "-euo", "pipefail", "-c", command])
        self.typed[line] = self._output
        if line.startswith("shoal invite"):
            self.place.told["LINE"] = self._output.splitlines()[0]
        if line.startswith("shoal init runs/mesh "):
            words = self._output.split()
            self.place.told["MESH_ID"] = words[1]
            self.place.told["7c1e"] = words[words.index("node3") + 1][:16]
        return _nothing

    def _end(self, directory: str) -> None:
        """Ctrl-C where this node runs."""
        named = re.compile(rf"\s{re.escape(directory)}(?!\S)")
        (terminal,) = (
            each for each in self._terminals if named.search(each.command) and each.alive
        )
        assert terminal.interrupt() == 0, terminal.shows()[-3000:]

    def _until_it_votes(self) -> None:
        """Look at the newcomer until it is what it was promoted to."""
        address = load_settings(self._newcomer).node.inspect_listen

        def votes() -> bool:
            reply = status(address)
            return reply is not None and reply.role == "validator"

        self._terminals[-1].until(votes)

    def _wait_for_what_it_names(self, line: str) -> None:
        """A reader types a name when it is there."""
        for name in re.findall(r"\S*runs/\S+/checkpoints/\d+", line):
            deadline = time.monotonic() + COMMAND_S_MAX
            while not (self.home / name).exists():
                assert time.monotonic() < deadline, f"{name} did not come"
                time.sleep(0.2)

    def _run(self, words: list[str], *, given: str = f"{PASSPHRASE}\n" * 2) -> None:
        done = subprocess.run(
            words,
            cwd=self.home,
            env=self.place.environment(words[-1]),
            input=given,
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
            # Without a terminal a passphrase is read from its input.
            start_new_session=True,
            check=False,
        )
        self._output = done.stdout
        said = f"{given if words[-1] == '-' else words[-1]}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, f"exit code {done.returncode}: {said}"

    def _open(self, line: str, command: str) -> Terminal:
        log = self.home / f"terminal{len(self._terminals)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-euc", f"exec {command}"],
                cwd=self.home,
                env=self.place.environment(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Where this test runs in the background, Ctrl-C means nothing to its children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        self._terminals.append(Terminal(line, process, log))
        return self._terminals[-1]

    def _node_runs(self, line: str, terminal: Terminal) -> None:
        """`shoal run DIRECTORY`: it answers."""
        directory = self.home / line.split()[2]
        address = load_settings(directory).node.inspect_listen
        terminal.until(lambda: status(address) is not None)

    def _node_joined(self, line: str, terminal: Terminal) -> None:
        """`shoal join`: it is a member, and trains."""
        directory = self._newcomer = self.home / re.findall(r"--dir (\S+)", line)[0]

        def member() -> bool:
            if not (directory / "node.toml").exists():
                return False
            reply = status(load_settings(directory).node.inspect_listen)
            return reply is not None and reply.role == "member" and reply.training.round >= 1

        terminal.until(member)
        self.place.told["3f2a"] = Identity.load(directory / "identity.key").node_id.hex()[:16]

    def _page_opens(self, line: str, terminal: Terminal) -> None:
        """`shoal serve`, `shoal dashboard`: what it says to open, opens."""
        path = "/health" if "serve" in line else "/"

        def opens() -> bool:
            found = re.search(r"http://[\w.]+:\d+", terminal.shows())
            try:
                return found is not None and urlopen(found[0] + path, timeout=5).status == 200
            except URLError:
                return False

        terminal.until(opens)

    def _watched(self, line: str, terminal: Terminal) -> None:
        """`--watch`: it shows something, and ends when it is told to."""
        del line
        terminal.until(lambda: "round" in terminal.shows())
        assert terminal.interrupt() == 130


def _is_a_node_toml(block: Block, home: Path) -> None:
    """What a page shows of a node's settings can be set."""
    path = home / "small" / "node.toml"
    path.write_text(block.text)
    try:
        load_settings(path)
    except UserError as error:
        raise AssertionError(f"{block.page}:{block.line}: {error}") from None


def _nothing() -> None:
    """Nothing to wait for."""


# What is typed once more where a page says it once more; anything else has been done already.
AGAIN = re.compile(r"shoal (invite|join|promote|demote|expel|leave|status|parameters)\b")
# What stays open, and how one sees that it does what it is for.
STAYS_OPEN: dict[str, Callable[[Reader, str, Terminal], None]] = {
    "shoal run ": Reader._node_runs,
    "shoal join ": Reader._node_joined,
    "shoal serve ": Reader._page_opens,
    "shoal dashboard ": Reader._page_opens,
    " --watch": Reader._watched,
}
