"""OpenAI's API for completions and chats, served from a certified checkpoint.

An ASGI application; whose turn it is, desk.py decides.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.serving.answers import Answer, error_body
from shoal.serving.desk import Desk, Key
from shoal.serving.errors import RequestError
from shoal.serving.requests import (
    BODY_BYTES_MAX,
    MODEL,
    ChatRequest,
    CompletionRequest,
    Request,
    parse_request,
)
from shoal.serving.text_model import Piece

# Who takes longer to send a request, or to take what is sent, is not waited for.
READ_MAX_S = 30.0


def make_app(desk: Desk) -> Starlette:
    """Return the ASGI application."""
    given, information = desk.given, _Information(desk)
    return Starlette(
        routes=[
            Route("/health", information.health),
            Route("/v1/models", information.models),
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
        self._key = Key(key)
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HttpRequest(scope)
        app = self._app
        if self._hosts and request.url.hostname not in self._hosts:
            app = _error("this is not the name of this server", 403)
        elif scope["path"] != "/health" and not self._key.is_shown(
            request.headers.get("authorization", "")
        ):
            app = _error("show the key: Authorization: Bearer KEY", 401, code="invalid_api_key")
        await app(scope, receive, send)


class _Information:
    """What is served, without anything being computed."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def health(self, request: HttpRequest) -> Response:
        """Say what is served, and to how many."""
        origin = self._desk.given.current().origin
        content = {"status": "ok", "answering": self._desk.busy, "shoal": origin.to_json()}
        return JSONResponse(content, headers=origin.headers)

    async def models(self, request: HttpRequest) -> Response:
        """List the one model."""
        served = self._desk.given.current()
        model = {
            "id": MODEL,
            "object": "model",
            "created": served.created,
            "owned_by": served.origin.mesh,
            "shoal": served.origin.to_json(),
        }
        return JSONResponse({"object": "list", "data": [model]}, headers=served.origin.headers)


class _Endpoint:
    """Answers one kind of request."""

    def __init__(self, desk: Desk, kind: type[Request]) -> None:
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
        number = given.chance()
        begun = await self._desk.begin(asked, number)
        answer = Answer(
            number=number,
            created=int(given.clock()),
            chat=isinstance(asked, ChatRequest),
            prompt_tokens=begun.prompt_tokens,
            origin=begun.served.origin,
        )
        headers = answer.origin.headers
        async with aclosing(begun.pieces) as pieces:
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
