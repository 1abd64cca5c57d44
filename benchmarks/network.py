"""A network for the systems that are compared: a namespace for each worker, one switch between.

    python -m benchmarks.network        # check the counters against a transfer of known size

Each worker's processes run in a network namespace with one interface, and what a worker sent is
that interface's own counter: every byte of every frame, headers, acknowledgements and what was sent
twice included. What its processes tell each other over loopback does not count. Segmentation is
left to TCP, not to the interface (gso_max_segs 1), so that frames are counted as they would lie on
a wire: 1,514 bytes at most. Nothing outside is touched: it all lies in a namespace of this process.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

INTERFACE = "eth0"
_INSIDE = "SHOAL_BENCHMARK_NETWORK"
_READY_SECONDS = 5.0
_CHECK_BYTES = 64 << 20
_CHECK_PORT = 9000


def enter(module: str) -> None:
    """Go on in namespaces of our own; starts `python -m module` again with the same arguments.

    All processes in there end when this one does.
    """
    if os.environ.get(_INSIDE):
        return
    os.environ[_INSIDE] = "1"
    command = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid():
        command.append("--map-root-user")
    os.execvp(command[0], [*command, "--", sys.executable, "-m", module, *sys.argv[1:]])


class Star:
    """Namespaces "0" to "n - 1", addresses 10.88.INDEX.1, on one switch."""

    def __init__(self, members: int) -> None:
        """Call enter() first."""
        assert os.environ.get(_INSIDE), "this would be the machine's own network"
        _run("ip", "link", "add", "hub", "type", "bridge", "forward_delay", "0")
        _run("ip", "link", "set", "hub", "up")
        self._holders = [self._add(index) for index in range(members)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait()
        _run("ip", "link", "del", "hub")

    def _add(self, index: int) -> "subprocess.Popen[bytes]":
        holder = subprocess.Popen(["unshare", "--net", "--", "sleep", "infinity"])
        deadline = time.monotonic() + _READY_SECONDS
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
            assert time.monotonic() < deadline, "unshare made no namespace"
            time.sleep(0.01)
        port = f"port{index}"
        peer = ("peer", "name", INTERFACE, "netns", str(holder.pid))
        _run("ip", "link", "add", port, "type", "veth", *peer)
        _run("ip", "link", "set", port, "master", "hub", "gso_max_segs", "1", "up")
        inside = ("nsenter", f"--net=/proc/{holder.pid}/ns/net", "ip")
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "addr", "add", f"{self.address(index)}/16", "dev", INTERFACE)
        _run(*inside, "link", "set", INTERFACE, "gso_max_segs", "1", "up")
        return holder

    @staticmethod
    def address(index: int) -> str:
        """Where a member is reached by the others."""
        return f"10.88.{index}.1"

    def command(self, index: int, command: Sequence[str]) -> list[str]:
        """The command that runs `command` as a process of a member."""
        return ["nsenter", f"--net=/proc/{self._holders[index].pid}/ns/net", "--", *command]

    def sent_bytes(self, index: int) -> int:
        """Bytes of all frames that a member has sent so far."""
        return self._counters(index)[8]

    def sent_frames(self, index: int) -> int:
        """How many frames those were."""
        return self._counters(index)[9]

    def _counters(self, index: int) -> list[int]:
        table = Path(f"/proc/{self._holders[index].pid}/net/dev").read_text()
        line = next(line for line in table.splitlines() if line.strip().startswith(INTERFACE))
        return [int(word) for word in line.partition(":")[2].split()]


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _receive() -> None:
    """Take one connection and read it to its end."""
    with socket.create_server(("", _CHECK_PORT)) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        with connection:
            while connection.recv(1 << 20):
                pass


def _send(address: str) -> None:
    with socket.create_connection((address, _CHECK_PORT)) as connection:
        for _ in range(_CHECK_BYTES >> 20):
            connection.sendall(bytes(1 << 20))


def _check() -> None:
    """Send a known number of bytes; print what the counters say and what they should at least."""
    own = [sys.executable, "-m", "benchmarks.network"]
    with Star(2) as star:
        receiver = subprocess.Popen(star.command(1, [*own, "receive"]), stdout=subprocess.PIPE)
        assert receiver.stdout is not None
        receiver.stdout.readline()
        subprocess.run(star.command(0, [*own, star.address(1)]), check=True)
        receiver.wait()
        sent, frames = star.sent_bytes(0), star.sent_frames(0)
        # 1,448 bytes of payload to a frame of 1,514: Ethernet 14, IP 20, TCP with timestamps 32.
        expected = _CHECK_BYTES + -(-_CHECK_BYTES // 1448) * 66
        line = {
            "benchmark": "network",
            "payload_bytes": _CHECK_BYTES,
            "counted_bytes": sent,
            "payload_and_headers_bytes": expected,
            "frames": frames,
            "acknowledgement_bytes": star.sent_bytes(1),
            "counted_over_expected": round(sent / expected, 5),
        }
    print(json.dumps(line), flush=True)
    assert 1 <= sent / expected < 1.01, "the counters do not count what is sent"


def main() -> None:
    """Check, or be one end of the check."""
    if sys.argv[1:] == ["receive"]:
        _receive()
    elif sys.argv[1:]:
        _send(sys.argv[1])
    else:
        enter("benchmarks.network")
        _check()


if __name__ == "__main__":
    main()
