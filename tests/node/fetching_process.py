"""A process that fetches the made-up checkpoint into a directory, to be killed in the middle."""

import asyncio
import sys
from pathlib import Path
from typing import Any

from shoal.node.fetch import fetch_checkpoint
from shoal.node.meters import Meters
from shoal.proto.mesh_pb2_grpc import MeshStub
from tests.node.holders import MESH_ID, MadeUpCheckpoint
from tests.node.tls import HOLDER, channel_to


async def fetch(directory: Path, address: str, chunks: int) -> None:
    """Fetch from one address until it is done."""
    checkpoint = MadeUpCheckpoint(chunks)
    async with channel_to(address, HOLDER.node_id) as channel:
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
