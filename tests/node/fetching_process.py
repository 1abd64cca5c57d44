"""A process that fetches the made-up checkpoint into a directory, to be killed in the middle."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc

from shoal.node.fetch import fetch_checkpoint
from shoal.node.links import CHANNEL_OPTIONS
from shoal.node.meters import Meters
from shoal.proto.mesh_pb2_grpc import MeshStub
from tests.node.holders import MESH_ID, MadeUpCheckpoint


async def fetch(directory: Path, address: str, chunks: int) -> None:
    """Fetch from one address until it is done."""
    checkpoint = MadeUpCheckpoint(chunks)
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub: Any = MeshStub(channel)
        await fetch_checkpoint(
            mesh_id=MESH_ID,
            holders={"holder": stub},
            certify=checkpoint.certify,
            directory=directory,
            anchor_bytes=len(checkpoint.data),
            above=0,
            meters=Meters(),
        )


if __name__ == "__main__":
    asyncio.run(fetch(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
