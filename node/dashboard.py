"""The page of `shoal dashboard`: static files of this package, and one stream of events.

Loopback only, in the clear, for whoever sits at this machine. A page of another site that is open
in the same browser can neither read it (no CORS, and the Host header must name this machine) nor
frame it. What peers sent reaches the browser as JSON and is put into text nodes; the policy below
stops whatever would be markup all the same, down to `innerHTML` itself (trusted types).
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.node.addresses import is_loopback, split_address
from shoal.node.errors import UserError
from shoal.node.mesh_watch import MeshWatch, Target

PAGE = Path(__file__).parent / "page"
READERS_MAX = 32
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class _WithHeaders:
    """Middleware: the headers above, on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)


async def _stream(watch: MeshWatch, ending: Callable[[], bool]) -> AsyncIterator[str]:
    """Server-sent events: the mesh now, and what the reader has not been told yet."""
    told = 0
    while not ending():
        entries, told = watch.journal.since(told), watch.journal.count
        data = {"mesh": watch.picture, "entries": entries}
        yield f"data: {json.dumps(data, allow_nan=False)}\n\n"
        await watch.ticked.wait()


def make_app(watch: MeshWatch, ending: Callable[[], bool]) -> Starlette:
    """The page as an ASGI application; its streams end once `ending`."""

    async def events(_: Request) -> Response:
        return StreamingResponse(_stream(watch, ending), media_type="text/event-stream")

    return Starlette(
        routes=[
            Route("/events", events),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        middleware=[
            Middleware(_WithHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"]),
        ],
    )


async def serve(target: Target, listen: str, ready: Callable[[str], None]) -> None:
    """Serve the page until SIGINT or SIGTERM; `ready` is told its address. Raises UserError."""
    listener = _bind(listen)
    host, port = listener.getsockname()[:2]
    watch = MeshWatch(target, time.time)
    server: uvicorn.Server
    app = make_app(watch, lambda: server.should_exit)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_level="warning",
            access_log=False,
            limit_concurrency=READERS_MAX,
            timeout_graceful_shutdown=2,
        )
    )
    watching = asyncio.create_task(watch.run(), name="watch")
    # It never ends by itself: what ended it is raised below.
    watching.add_done_callback(lambda _: setattr(server, "should_exit", True))
    ready(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/")
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def _bind(listen: str) -> socket.socket:
    try:
        host, port = split_address(listen)
    except ValueError as error:
        raise UserError(f"--listen: {error}") from None
    if not is_loopback(listen):
        raise UserError(
            f"--listen {listen} can be reached from other machines, and anybody could look; use "
            "127.0.0.1, and from elsewhere: ssh -L 7800:127.0.0.1:7800 this machine"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen on {listen}: {error.strerror}; choose another address with --listen"
        ) from None
