"""`shoal serve`: certified checkpoints behind OpenAI's API, in a process of its own.

What answers is serving/api.py; here are its sockets, clock and thread, and who looks for a newer
checkpoint. A model that is replaced is kept until the answers that it began are finished.
"""

import asyncio
import contextlib
import secrets
import signal
import socket
import time

import structlog
import uvicorn

from shoal.node.addresses import split_address
from shoal.node.errors import UserError
from shoal.node.follow import Follower
from shoal.node.one_thread import OneThread
from shoal.node.text_servicer import start_text_server
from shoal.serving.api import make_app
from shoal.serving.desk import REQUESTS_MAX, Desk, Served, Surroundings
from shoal.training.errors import TrainingError

log = structlog.get_logger()

LOOK_EVERY_S = 2.0
CONNECTIONS_MAX = 256
STOP_S = 2


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process by the signal that they caught."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


class Serving:
    """The checkpoint that is served now, and the search for a newer one."""

    def __init__(
        self, follower: Follower, first: Served, *, look_every_s: float = LOOK_EVERY_S
    ) -> None:
        self._follower = follower
        self._look_every_s = look_every_s
        self.served = first

    async def follow(self) -> None:
        """Serve each newer checkpoint from when it has been verified; never returns."""
        while True:
            await asyncio.sleep(self._look_every_s)
            try:
                newer = await asyncio.to_thread(self._follower.look)
            except (UserError, TrainingError, OSError) as error:
                log.warning("serve.kept", height=self.served.origin.height, why=str(error))
                continue
            if newer is not None:
                self.served = newer
                log.info("serve.checkpoint", **newer.origin.to_json())


def bind(listen: str) -> socket.socket:
    """A listening socket; raises UserError where the address cannot be had."""
    host, port = split_address(listen)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        # Its connections name their protocol, as those of socket.create_server do not: else asyncio
        # leaves Nagle's algorithm on, and first tokens wait 40 ms for an acknowledgement.
        listener = socket.socket(*found[0][:3])
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(found[0][4])
            listener.listen(CONNECTIONS_MAX)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UserError(f"cannot listen on {listen}: {error.strerror}; set --listen") from None
    return listener


async def serve(
    serving: Serving,
    listener: socket.socket,
    stop: asyncio.Event,
    *,
    key: str = "",
    requests_max: int = REQUESTS_MAX,
    grpc: str = "",
) -> None:
    """Answer until `stop` is set. Without a key it answers only to names of this machine.

    grpc: host:port for the same by gRPC, "" for none; raises UserError where it cannot be had.
    """
    thread = OneThread("generation")
    given = Surroundings(
        current=lambda: serving.served,
        run=thread.run,
        clock=time.time,
        chance=lambda: secrets.randbits(63),
        key=key,
        hosts=() if key else ("127.0.0.1", "localhost", "::1"),
        requests_max=requests_max,
    )
    desk = Desk(given)
    try:
        text = await start_text_server(desk, grpc) if grpc else None
    except UserError:
        thread.close()
        listener.close()
        raise
    server = _Server(
        uvicorn.Config(
            make_app(desk),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_graceful_shutdown=STOP_S,
        )
    )
    follow = asyncio.create_task(serving.follow(), name="follow")
    answer = asyncio.create_task(server.serve([listener]), name="serve")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait((follow, answer, stopped), return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await answer
        # Those that it did not wait for are being cancelled, and end their streams.
        await asyncio.gather(*server.server_state.tasks, return_exceptions=True)
        if follow.done():
            follow.result()
    finally:
        follow.cancel()
        stopped.cancel()
        if text is not None:
            await text.stop(STOP_S)
        thread.close()


async def run(
    serving: Serving, listen: str, *, key: str, requests_max: int, grpc: str = ""
) -> None:
    """Serve until Ctrl-C or SIGTERM; raises UserError as `bind`."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    listener = bind(listen)
    host, port = listener.getsockname()[:2]
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    origin = serving.served.origin.to_json()
    log.info("serve.listening", url=f"http://{where}/v1", grpc=grpc or "off", **origin)
    await serve(serving, listener, stop, key=key, requests_max=requests_max, grpc=grpc)
