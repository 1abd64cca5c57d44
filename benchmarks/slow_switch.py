"""A switch that takes its time: frames between TAP devices, each line with a delay and a rate.

    python -m benchmarks.slow_switch --delay-ms 20 --rate-mbit 50 3 4 5 6     # file descriptors

This kernel's tc has tbf but no netem, so the delay is made here: a frame reaches its destination
`delay` after it came in, and the line to the destination carries one frame at a time at its rate.
What would have to wait longer than QUEUE_SECONDS is dropped, as by a router with a full queue. The
rate of the line from each member is tbf's, on the member's own device (network.py).
"""

import argparse
import errno
import os
import select
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

FRAME_BYTES_MAX = 65536
QUEUE_SECONDS = 0.2
FRAMES_AT_ONCE = 64
_BROADCAST_BIT = 1


@dataclass(slots=True)
class Line:
    """The line to one member: what is on it, in the order of arrival. Times in seconds."""

    delay: float
    bytes_per_second: float
    frames: "deque[tuple[float, bytes]]" = field(default_factory=deque)
    dropped: int = 0
    _free_at: float = 0.0

    def put(self, frame: bytes, now: float) -> None:
        """Take a frame that the switch has at `now`, or drop it."""
        begins = max(now, self._free_at)
        if begins - now > QUEUE_SECONDS:
            self.dropped += 1
            return
        self._free_at = begins + len(frame) / self.bytes_per_second
        self.frames.append((self._free_at + self.delay, frame))

    def arrived(self, now: float) -> list[bytes]:
        """Take off what has reached the member by `now`."""
        there = []
        while self.frames and self.frames[0][0] <= now:
            there.append(self.frames.popleft()[1])
        return there

    @property
    def next_at(self) -> float | None:
        """When the next frame reaches the member; None for an idle line."""
        return self.frames[0][0] if self.frames else None


class Switch:
    """Learns which member has which address; sends what is for nobody or all to all others."""

    def __init__(self, lines: dict[int, Line]) -> None:
        self.lines = lines
        self._port_by_address: dict[bytes, int] = {}

    def take(self, port: int, frame: bytes, now: float) -> None:
        """Put a frame from `port` on the lines that it belongs on."""
        self._port_by_address[frame[6:12]] = port
        known = None if frame[0] & _BROADCAST_BIT else self._port_by_address.get(frame[:6])
        for destination in [p for p in self.lines if p != port] if known is None else [known]:
            self.lines[destination].put(frame, now)


def serve(switch: Switch) -> None:
    """Carry frames for ever; the ports are file descriptors of TAP devices."""
    poll = select.epoll()
    for port in switch.lines:
        os.set_blocking(port, False)
        poll.register(port, select.EPOLLIN)
    while True:
        due = [line.next_at for line in switch.lines.values() if line.next_at is not None]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        for port, _ in poll.poll(wait):
            with suppress(BlockingIOError):
                for _ in range(FRAMES_AT_ONCE):
                    switch.take(port, os.read(port, FRAME_BYTES_MAX), time.monotonic())
        now = time.monotonic()
        for port, line in switch.lines.items():
            for frame in line.arrived(now):
                _send(port, frame)


def _send(port: int, frame: bytes) -> None:
    """A member that does not read, or whose device is not up yet, loses it, as on any wire."""
    try:
        os.write(port, frame)
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def main() -> None:
    """Serve the TAP devices that were handed over."""
    parser = argparse.ArgumentParser(description="A switch with slow lines.")
    parser.add_argument("--delay-ms", type=float, required=True)
    parser.add_argument("--rate-mbit", type=float, required=True)
    parser.add_argument("ports", type=int, nargs="+")
    options = parser.parse_args()
    rate = options.rate_mbit * 1e6 / 8
    serve(Switch({port: Line(options.delay_ms / 1000, rate) for port in options.ports}))


if __name__ == "__main__":
    main()
