"""How fast a checkpoint comes from one holder and from three: JSON lines.

    python -m benchmarks.fetch

Each holder is a process of its own on this machine. They are measured as fast as they go, and with
lines of 10 MiB/s each, as members at home have: there more holders must mean more speed, while on
one machine without such a limit they share the processors with the fetcher, which hashes every
chunk and waits for the disk before it counts it.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shoal.node.fetch import fetch_checkpoint
from shoal.node.meters import Meters
from shoal.node.rate import TokenBucket
from shoal.proto.mesh_pb2_grpc import MeshStub
from tests.node.holders import MESH_ID, Holder, MadeUpCheckpoint
from tests.node.tls import HOLDER, channel_to

MIB = 1 << 20
CHUNKS = 64
LINE = 10 * MIB
REPEATS = 3


class Narrow(Holder):
    """A holder at the end of a line of so many bytes per second; 0 for no limit."""

    def __init__(self, checkpoint: MadeUpCheckpoint, rate: int) -> None:
        super().__init__(checkpoint)
        self._bucket = TokenBucket(rate) if rate else None

    async def chunk(self, height: int, address: bytes) -> bytes | None:
        data = await super().chunk(height, address)
        if self._bucket is not None and data is not None:
            await asyncio.sleep(self._bucket.take(len(data), time.monotonic()))
        return data


async def serve(rate: int) -> None:
    """Be a holder until the end of the process; prints the address."""
    holder = Narrow(MadeUpCheckpoint(CHUNKS), rate)
    await holder.start()
    print(holder.address, flush=True)
    await asyncio.Event().wait()


async def fetch_once(checkpoint: MadeUpCheckpoint, addresses: list[str]) -> float:
    """Fetch the checkpoint into a fresh directory; returns MiB per second."""
    channels = [channel_to(each, HOLDER.node_id) for each in addresses]
    stubs: list[Any] = [MeshStub(channel) for channel in channels]
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        await fetch_checkpoint(
            mesh_id=MESH_ID,
            holders=dict(zip(addresses, stubs, strict=True)),
            certify=checkpoint.certify,
            directory=Path(directory),
            anchor_bytes=len(checkpoint.data),
            above=0,
            meters=Meters(),
        )
        took_s = time.perf_counter() - started
    for channel in channels:
        await channel.close()
    return len(checkpoint.data) / MIB / took_s


async def measure(holders: int, rate: int) -> None:
    """Start holders, fetch some times, print a line."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.fetch", "--serve", str(rate), stdout=-1
        )
        for _ in range(holders)
    ]
    try:
        addresses = []
        for process in processes:
            assert process.stdout is not None
            addresses.append((await process.stdout.readline()).decode().strip())
        checkpoint = MadeUpCheckpoint(CHUNKS)
        speeds = [await fetch_once(checkpoint, addresses) for _ in range(REPEATS)]
    finally:
        for process in processes:
            process.kill()
            await process.wait()
    line = {
        "benchmark": "fetch",
        "holders": holders,
        "line_mib_per_s": rate / MIB or None,
        "anchor_mib": round(len(checkpoint.data) / MIB, 1),
        "mib_per_s": round(statistics.median(speeds), 1),
        "all": [round(speed, 1) for speed in speeds],
    }
    print(json.dumps(line), file=sys.__stdout__, flush=True)


def main() -> None:
    """Measure, or be one of the holders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=int, metavar="RATE", help=argparse.SUPPRESS)
    rate: int | None = parser.parse_args().serve
    if rate is not None:
        asyncio.run(serve(rate))
        return
    # What the fetch logs is not part of the result.
    sys.stdout = sys.stderr
    for line_rate in (0, LINE):
        for holders in (1, 3):
            asyncio.run(measure(holders, line_rate))


if __name__ == "__main__":
    main()
