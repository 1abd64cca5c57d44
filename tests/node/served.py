"""Certified checkpoints of a model that writes, and `shoal serve` in the test's own event loop."""

import asyncio
import http.client
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import openai
import torch

from shoal.node.follow import Follower
from shoal.node.founding import first_anchor
from shoal.node.serve import Serving, bind, serve
from shoal.training.model import FlatModel, build_model
from shoal.training.tokenizer import ByteTokenizer
from tests.node.certified import CertifiedMesh
from tests.serving.models import SMALL

# It goes on until it is told to stop.
ENDLESS = {**SMALL, "eos_token_id": None}


def certify(directory: Path, height: int, **mesh: Any) -> Path:
    """Write the checkpoint of a height, of a model of its own; returns checkpoints/<height>."""
    given: dict[str, Any] = {"tokenizer": ByteTokenizer().files(), "model": ENDLESS, **mesh}
    anchor = first_anchor(FlatModel(build_model(given["model"], seed=height)))
    return CertifiedMesh("ABCD", anchor=anchor, height=height, **given).write(directory)


def make_follower(directory: Path, trust: bytes | None = None, average: int = 1) -> Follower:
    cpu = torch.device("cpu")
    return Follower(directory, trust=trust, base=None, device=cpu, clock=time.time, average=average)


class Loopback:
    """A service on loopback and how to reach it."""

    def __init__(self, serving: Serving, port: int, key: str) -> None:
        self.serving = serving
        self.port = port
        self.openai = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1",
            api_key=key or "nobody asks",
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        )

    async def ask(
        self, path: str, body: object = None, **headers: str | bytes
    ) -> tuple[int, dict[str, Any]]:
        """Status and content of the answer to a request that no careful client sends."""
        return await asyncio.to_thread(self._ask, path, body, headers)

    def _ask(self, path: str, body: object, headers: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        shown = {"content-type": "application/json", **headers}
        with closing(connection):
            connection.request("GET" if data is None else "POST", path, data, shown)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    async def until_answering(self, count: int) -> None:
        """Wait until so many requests are being answered."""
        async with asyncio.timeout(60):
            while (await self.ask("/health"))[1]["answering"] != count:
                pass


@asynccontextmanager
async def loopback(
    directory: Path, *, key: str = "", average: int = 1, **how: Any
) -> AsyncIterator[Loopback]:
    """Serve a directory as `shoal serve` does, but look for newer checkpoints without pause."""
    follower = make_follower(directory, average=average)
    first = follower.look()
    assert first is not None
    serving, listener = Serving(follower, first, look_every_s=0.05), bind("127.0.0.1:0")
    stop = asyncio.Event()
    service = asyncio.create_task(serve(serving, listener, stop, key=key, **how))
    here = Loopback(serving, listener.getsockname()[1], key)
    try:
        yield here
    finally:
        await here.openai.close()
        stop.set()
        await service
