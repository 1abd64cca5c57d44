"""The gate of the members' port: each call is looked at, and ends when its caller is out.

The handshake refuses strangers, but a connection outlives it, and so do sessions and streams. So
every call, whatever it is, is checked here against the list of this moment before a servicer sees
it, and those that go on are ended when their caller leaves the list. What is checked is cached by
certificate: nothing is done for each message of a stream.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import structlog

from shoal.node.certificates import Presented, read_leaf
from shoal.node.errors import PeerError
from shoal.node.identity import short
from shoal.node.meters import Meters
from shoal.node.trust import Trust

log = structlog.get_logger()

TLS_VERSION = b"TLSv1.3"
LAST_MESSAGE_S = 30.0


class Gate(grpc.aio.ServerInterceptor):
    """Lets calls of members through to the servicers, and knows who calls."""

    def __init__(self, trust: Trust, meters: Meters) -> None:
        self._trust = trust
        self._meters = meters
        self._calls: dict[asyncio.Task[Any], bytes] = {}
        self._out: set[asyncio.Task[Any]] = set()
        trust.watchers.append(self.refresh)

    def caller(self, context: Any) -> Presented:
        """Who makes this call; raises PeerError unless it is a member with a valid leaf."""
        facts = context.auth_context()
        if facts.get("ssl_tls_version") != [TLS_VERSION]:
            raise PeerError("wrong-tls", "TLS 1.3 is what members speak")
        (pem,) = facts.get("x509_pem_cert") or (b"",)
        presented = read_leaf(pem)
        # A resumed session has not shown its leaf again, and a connection may be older than it.
        if not presented.not_before <= self._trust.now() <= presented.not_after:
            raise PeerError("leaf-expired", short(presented.node_id))
        if not self._trust.admits(presented.node_id):
            raise PeerError("not-a-member", short(presented.node_id))
        return presented

    def refresh(self) -> None:
        """End the calls of those who are no members any more."""
        for task, peer in list(self._calls.items()):
            if task not in self._out and not self._trust.admits(peer):
                log.info("call.cut", peer=short(peer))
                self._out.add(task)
                task.cancel()

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Put the check in front of whatever handles the call."""
        handler = await continuation(details)
        if handler is None:
            return None
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behaviour = getattr(handler, kind)
            if behaviour is not None:
                return handler._replace(**{kind: self._guarded(behaviour)})
        raise AssertionError("a handler of no kind")

    def _guarded(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def answer(request: Any, context: Any) -> Any:
            try:
                with self._during(context):
                    return await behaviour(request, context)
            except PeerError as error:
                await self._turn_away(context, error)

        async def stream(request: Any, context: Any) -> None:
            try:
                with self._during(context):
                    async for each in behaviour(request, context):
                        await self._write(context, each)
            except PeerError as error:
                await self._turn_away(context, error)

        return stream if inspect.isasyncgenfunction(behaviour) else answer

    async def _write(self, context: Any, message: Any) -> None:
        """Send one message of a stream; whoever is put out meanwhile gets this one still.

        A call can be ended only when nothing is being sent on it, and a caller that does not read
        keeps a message from being sent.
        """
        task, writing = asyncio.current_task(), asyncio.ensure_future(context.write(message))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            if task in self._out:
                await asyncio.wait((writing,), timeout=LAST_MESSAGE_S)
            if not writing.done():
                # It is left to the end of the connection, without another word.
                self._out.discard(task)
                writing.cancel()
            raise

    @contextmanager
    def _during(self, context: Any) -> Iterator[None]:
        """While a call is answered; raises PeerError when its caller is, or gets, out."""
        peer = self.caller(context).node_id
        task = asyncio.current_task()
        assert task is not None, "a call is a task"
        self._calls[task] = peer
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._out:
                raise
            task.uncancel()
            raise PeerError("not-a-member", f"{short(peer)} is out") from None
        finally:
            self._out.discard(task)
            del self._calls[task]

    async def _turn_away(self, context: Any, error: PeerError) -> None:
        self._meters.rejected[error.reason] += 1
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
