"""A network for the systems that are compared: a namespace for each worker, one switch between.

    python -m benchmarks.network        # check the counters against a transfer of known size

Each worker's processes run in a network namespace with one interface, and what a worker sent is
that interface's own counter: every byte of every frame, headers, acknowledgements and what was sent
twice included. What its processes tell each other over loopback does not count. Segmentation is
left to TCP, not to the interface (gso_max_segs 1), so that frames are counted as they would lie on
a wire: 1,514 bytes at most. Nothing outside is touched: it all lies in a namespace of this process.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

INTERFACE = "eth0"
_INSIDE = "SHOAL_BENCHMARK_NETWORK"
_READY_SECONDS = 5.0
_CHECK_BYTES = 64 << 20
_CHECK_PORT = 9000
# Large frames, so that the switch, a Python program, has few of them to carry; that favours those
# who send much.
_SLOW_MTU = 9000
_BURST_BYTES_MIN = 32_768
_BURST_SECONDS = 0.004
_TBF_LATENCY = "200ms"
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


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


@dataclass(frozen=True, slots=True)
class Shape:
    """What a member's line is like, in both directions."""

    rate_mbit: float
    # From one member to another; a round trip takes twice as long.
    delay_ms: float


class Star:
    """Members 0 to n - 1, each a namespace with an address of its own, on one switch."""

    def __init__(self, members: int, shape: Shape | None = None) -> None:
        """Call enter() first. shape: None for lines as fast as the machine."""
        assert os.environ.get(_INSIDE), "this would be the machine's own network"
        self._holders = [_hold_namespace() for _ in range(members)]
        self._switch: subprocess.Popen[bytes] | None = None
        if shape is None:
            self._join_bridge()
        else:
            self._join_slow_switch(shape)
        for index in range(members):
            self._inside(index, "ip", "link", "set", "lo", "up")
            self._inside(index, "ip", "addr", "add", f"{self.address(index)}/16", "dev", INTERFACE)
            self._inside(index, "ip", "link", "set", INTERFACE, "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*([self._switch] if self._switch else []), *self._holders]:
            process.kill()
            process.wait()
        if self._switch is None:
            _run("ip", "link", "del", "hub")

    def _join_bridge(self) -> None:
        _run("ip", "link", "add", "hub", "type", "bridge", "forward_delay", "0")
        _run("ip", "link", "set", "hub", "up")
        for index, holder in enumerate(self._holders):
            peer = ("peer", "name", INTERFACE, "netns", str(holder.pid))
            _run("ip", "link", "add", f"port{index}", "type", "veth", *peer)
            _run("ip", "link", "set", f"port{index}", "master", "hub", "gso_max_segs", "1", "up")
            self._inside(index, "ip", "link", "set", INTERFACE, "gso_max_segs", "1")

    def _join_slow_switch(self, shape: Shape) -> None:
        ports = [_make_tap(f"tap{index}") for index in range(len(self._holders))]
        rate = f"{round(shape.rate_mbit * 1000)}kbit"
        burst = str(max(_BURST_BYTES_MIN, round(shape.rate_mbit * 1e6 / 8 * _BURST_SECONDS)))
        for index, holder in enumerate(self._holders):
            device = f"tap{index}"
            _run("ip", "link", "set", device, "mtu", str(_SLOW_MTU), "netns", str(holder.pid))
            self._inside(index, "ip", "link", "set", device, "name", INTERFACE)
            tbf = ("tbf", "rate", rate, "burst", burst, "latency", _TBF_LATENCY)
            self._inside(index, "tc", "qdisc", "add", "dev", INTERFACE, "root", *tbf)
        command = [sys.executable, "-m", "benchmarks.slow_switch"]
        command += ["--delay-ms", str(shape.delay_ms), "--rate-mbit", str(shape.rate_mbit)]
        self._switch = subprocess.Popen([*command, *map(str, ports)], pass_fds=ports)
        for port in ports:
            os.close(port)

    def _inside(self, index: int, *command: str) -> None:
        _run(*self.command(index, command))

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


def _hold_namespace() -> "subprocess.Popen[bytes]":
    """A process that does nothing in a network namespace of its own."""
    holder = subprocess.Popen(["unshare", "--net", "--", "sleep", "infinity"])
    deadline = time.monotonic() + _READY_SECONDS
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
        assert time.monotonic() < deadline, "unshare made no namespace"
        time.sleep(0.01)
    return holder


def _make_tap(name: str) -> int:
    """Make a TAP device; returns the descriptor that its frames come from and go to."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
    return descriptor


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


def _transfer(star: Star) -> float:
    """Send a known number of bytes from member 0 to member 1; returns the seconds it took."""
    own = [sys.executable, "-m", "benchmarks.network"]
    receiver = subprocess.Popen(star.command(1, [*own, "receive"]), stdout=subprocess.PIPE)
    assert receiver.stdout is not None
    receiver.stdout.readline()
    started = time.monotonic()
    sender = subprocess.Popen(star.command(0, [*own, star.address(1)]))
    receiver.wait()
    took = time.monotonic() - started
    sender.wait()
    return took


def _check(shape: Shape | None) -> None:
    """Print what the counters and the clock say of a transfer; fail where they are wrong."""
    with Star(2, shape) as star:
        seconds = _transfer(star)
        sent, frames = star.sent_bytes(0), star.sent_frames(0)
        acknowledgements = star.sent_bytes(1)
    # Ethernet 14, IP 20, TCP with timestamps 32 bytes of each frame.
    payload = (1500 if shape is None else _SLOW_MTU) - 52
    expected = _CHECK_BYTES + -(-_CHECK_BYTES // payload) * 66
    line = {
        "benchmark": "network",
        "shape": asdict(shape) if shape else None,
        "payload_bytes": _CHECK_BYTES,
        "payload_and_headers_bytes": expected,
        "counted_bytes": sent,
        "counted_over_expected": round(sent / expected, 5),
        "frames": frames,
        "acknowledgement_bytes": acknowledgements,
        "seconds": round(seconds, 2),
        "mbit_per_s": round(_CHECK_BYTES * 8e-6 / seconds, 1),
    }
    print(json.dumps(line), flush=True)
    assert 1 <= sent / expected < 1.05, "the counters do not count what is sent"


def main() -> None:
    """Check, or be one end of the check."""
    if sys.argv[1:] == ["receive"]:
        _receive()
    elif sys.argv[1:]:
        _send(sys.argv[1])
    else:
        enter("benchmarks.network")
        _check(None)
        for rate_mbit in (50, 200, 1000):
            _check(Shape(rate_mbit, 20))


if __name__ == "__main__":
    main()
