"""OpenAI's API for completions and chats, served from a certified checkpoint.

An ASGI application without sockets, clock or threads of its own: it is told who does the blocking
work. That one thread makes one token of one stream at a time, in the order in which they are asked
for, so clients take turns; and a stream is asked for its next token when its client has taken the
one before, so nothing piles up and nobody has to be told that a client has gone.
"""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.serving.answers import Answer, Origin, error_body
from shoal.serving.errors import RequestError
from shoal.serving.requests import (
    BODY_BYTES_MAX,
    MODEL,
    PLAIN_CHAT_STOP,
    ChatRequest,
    CompletionRequest,
    Request,
    parse_request,
    plain_chat,
)
from shoal.serving.text_model import Piece, Sampling, Stream, TextModel

REQUESTS_MAX = 16
# Who takes longer to send a request, or to take what is sent, is not waited for.
READ_MAX_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model and where it is from. created: seconds since 1970 when it was opened.

    template: a conversation as its tokenizer writes it; None for plain_chat.
    """

    model: TextModel
    origin: Origin
    created: int
    template: Callable[[list[dict[str, str]]], str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the application is given.

    current: the checkpoint to serve now; run: does blocking work in one thread, in order; clock:
    seconds since 1970; chance: 63 random bits; key: what clients must show, "" for nothing; hosts:
    the names it answers to, empty for any; requests_max: how many are answered at a time.
    """

    current: Callable[[], Served]
    run: Callable[[Callable[[], Any]], Awaitable[Any]]
    clock: Callable[[], float]
    chance: Callable[[], int]
    key: str = ""
    hosts: Collection[str] = ()
    requests_max: int = REQUESTS_MAX


def make_app(given: Surroundings) -> Starlette:
    """Return the ASGI application."""
    desk = _Desk(given)
    return Starlette(
        routes=[
            Route("/health", desk.health),
            Route("/v1/models", desk.models),
            Route("/v1/completions", _Endpoint(desk, CompletionRequest), methods=["POST"]),
            Route("/v1/chat/completions", _Endpoint(desk, ChatRequest), methods=["POST"]),
        ],
        middleware=[Middleware(_Door, key=given.key, hosts=given.hosts)],
        exception_handlers={RequestError: _refuse, HTTPException: _no_such_place},
    )


class _Door:
    """Lets in who shows the key; without one, only whoever means this machine.

    A page in a browser of this machine can reach what listens on it, under a name of its own.
    """

    def __init__(self, app: ASGIApp, key: str, hosts: Collection[str]) -> None:
        self._app = app
        self._key = hashlib.sha256(key.encode()).digest() if key else b""
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HttpRequest(scope)
        app = self._app
        if self._hosts and request.url.hostname not in self._hosts:
            app = _error("this is not the name of this server", 403)
        elif self._key and scope["path"] != "/health" and not self._knows(request):
            app = _error("show the key: Authorization: Bearer KEY", 401, code="invalid_api_key")
        await app(scope, receive, send)

    def _knows(self, request: HttpRequest) -> bool:
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        # Hashes, so that not even its length can be told from how long this takes.
        digest = hashlib.sha256(shown.strip().encode()).digest()
        return kind.lower() == "bearer" and hmac.compare_digest(digest, self._key)


class _Desk:
    """Takes requests, at most so many at a time."""

    def __init__(self, given: Surroundings) -> None:
        self.given = given
        self._busy = 0

    async def health(self, request: HttpRequest) -> Response:
        """Say what is served, and to how many."""
        origin = self.given.current().origin
        content = {"status": "ok", "answering": self._busy, "shoal": origin.to_json()}
        return JSONResponse(content, headers=origin.headers)

    async def models(self, request: HttpRequest) -> Response:
        """List the one model."""
        served = self.given.current()
        model = {
            "id": MODEL,
            "object": "model",
            "created": served.created,
            "owned_by": served.origin.mesh,
            "shoal": served.origin.to_json(),
        }
        return JSONResponse({"object": "list", "data": [model]}, headers=served.origin.headers)

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places; raises RequestError when all are taken."""
        if self._busy >= self.given.requests_max:
            raise RequestError(
                f"{self._busy} requests are being answered, which is all that is done at a time; "
                "try again soon",
                status=429,
                code="rate_limit_exceeded",
            )
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    async def pieces(self, stream: Stream) -> AsyncGenerator[Piece, None]:
        """Advance a stream in the thread that does so, and end it there."""
        try:
            while (piece := await self.given.run(lambda: next(stream, None))) is not None:
                yield piece
        finally:
            # Done even where waiting for it is cancelled, and after what is under way.
            await self.given.run(stream.close)


class _Endpoint:
    """Answers one kind of request."""

    def __init__(self, desk: _Desk, kind: type[Request]) -> None:
        self._desk = desk
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(READ_MAX_S):
                await send(message)

        http = HttpRequest(scope, receive)
        try:
            async with asyncio.timeout(READ_MAX_S):
                body = await _read(http)
            with self._desk.place():
                await self._answer(parse_request(self._kind, body), http, send_in_time)
        except (ClientDisconnect, TimeoutError):
            return

    async def _answer(self, asked: Request, http: HttpRequest, send: Send) -> None:
        given = self._desk.given
        served, number = given.current(), given.chance()
        prompt, sampling = await asyncio.to_thread(_prepare, served, asked, number)
        answer = Answer(
            number=number,
            created=int(given.clock()),
            chat=isinstance(asked, ChatRequest),
            prompt_tokens=len(prompt),
            origin=served.origin,
        )
        headers = served.origin.headers
        async with aclosing(self._desk.pieces(served.model.stream(prompt, sampling))) as pieces:
            if asked.stream:
                events = _events(answer, pieces, usage=asked.stream_options.include_usage)
                async with aclosing(events):
                    response = StreamingResponse(events, 200, headers, "text/event-stream")
                    await response(http.scope, http.receive, send)
                return
            text = ""
            async for piece in pieces:
                if await http.is_disconnected():
                    return
                text += piece.text
            whole = JSONResponse(answer.whole(text, piece), headers=headers)
            await whole(http.scope, http.receive, send)


def _prepare(served: Served, asked: Request, seed: int) -> tuple[list[int], Sampling]:
    """The prompt's tokens and how to go on from them; raises RequestError."""
    text, stop = "", []
    if isinstance(asked, CompletionRequest):
        text = asked.prompt
    elif isinstance(asked, ChatRequest):
        messages = [{"role": each.role, "content": each.content} for each in asked.messages]
        text = (served.template or plain_chat)(messages)
        stop = [] if served.template else [PLAIN_CHAT_STOP]
    prompt = served.model.encode(text)
    room = served.model.room(prompt)
    return prompt, asked.sampling(room=room, seed=seed, stop=stop)


async def _events(
    answer: Answer, pieces: AsyncIterator[Piece], *, usage: bool
) -> AsyncGenerator[str, None]:
    """Server-sent events: each new piece of text, how it ended, then a word that ends the list."""
    first = True
    async for piece in pieces:
        if piece.text or piece.finish:
            yield _event(answer.part(piece.text, piece.finish, first=first))
            first = False
    if usage:
        yield _event(answer.usage_part(piece))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _read(http: HttpRequest) -> bytes:
    # A page of another site may send anything else without being asked whether it may.
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError("send JSON, with Content-Type: application/json", status=415)
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise RequestError(f"the body has more than {BODY_BYTES_MAX} bytes", status=413)
    return bytes(body)


def _error(
    message: str, status: int, *, parameter: str | None = None, code: str | None = None
) -> JSONResponse:
    headers = {429: {"retry-after": "1"}, 401: {"www-authenticate": "Bearer"}}.get(status)
    return JSONResponse(
        error_body(message, status, parameter=parameter, code=code), status, headers
    )


async def _refuse(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(str(error), error.status, parameter=error.parameter, code=error.code)


async def _no_such_place(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path:.80}"
    return _error(
        f"{where}: {error.detail}; there are /v1/models, /v1/completions and /v1/chat/completions",
        error.status_code,
    )
