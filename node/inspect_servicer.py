"""The servicer of Inspect: what people, and members for them, ask a node about itself."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from shoal.proto import inspect_pb2, inspect_pb2_grpc

WATCH_INTERVAL_MS_MIN = 100


class InspectServicer(inspect_pb2_grpc.InspectServicer):
    """What people ask for."""

    def __init__(
        self,
        status: Callable[[], inspect_pb2.StatusReply],
        explain: Callable[[int], inspect_pb2.ExplainReply],
    ) -> None:
        self._status = status
        self._explain = explain

    async def Status(
        self, request: inspect_pb2.StatusRequest, context: Any
    ) -> inspect_pb2.StatusReply:
        """Return this node's state."""
        return self._status()

    async def Watch(
        self, request: inspect_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[inspect_pb2.StatusReply]:
        """Return this node's state again and again."""
        interval_ms = max(WATCH_INTERVAL_MS_MIN, request.interval_ms or 1000)
        while True:
            yield self._status()
            await asyncio.sleep(interval_ms / 1000)

    async def Explain(
        self, request: inspect_pb2.ExplainRequest, context: Any
    ) -> inspect_pb2.ExplainReply:
        """Return how the checkpoint of a round came about."""
        return self._explain(request.round)
