"""The servicer of Text: `shoal serve --grpc`, the same desk as OpenAI's API by another door."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from shoal.node.errors import UserError
from shoal.proto import text_pb2, text_pb2_grpc
from shoal.serving.desk import Desk, Key
from shoal.serving.errors import RequestError
from shoal.serving.requests import BODY_BYTES_MAX, CompletionRequest, check_request

SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", BODY_BYTES_MAX),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.max_metadata_size", 8192),
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_allowed_incoming_connections", 256),
)
CALLS_MAX = 256
CODES = {429: grpc.StatusCode.RESOURCE_EXHAUSTED}
NO_KEY = 'show the key: metadata "authorization: Bearer KEY"'


class TextServicer(text_pb2_grpc.TextServicer):
    """Answers as long as its caller takes what is said: gRPC holds the next piece back."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._key = Key(desk.given.key)

    async def Generate(
        self, request: text_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[text_pb2.GenerateReply]:
        """Stream the text that follows a prompt."""
        shown = dict(context.invocation_metadata()).get("authorization", "")
        if not self._key.is_shown(str(shown)):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, NO_KEY)
        try:
            asked = check_request(CompletionRequest, _fields(request))
            with self._desk.place():
                begun = await self._desk.begin(asked, self._desk.given.chance())
                origin = begun.served.origin.to_json()
                async with aclosing(begun.pieces) as pieces:
                    async for piece in pieces:
                        yield text_pb2.GenerateReply(
                            text=piece.text,
                            tokens=piece.tokens,
                            finish=piece.finish,
                            prompt_tokens=begun.prompt_tokens,
                            reused_tokens=piece.reused,
                            **origin,
                        )
        except RequestError as error:
            code = CODES.get(error.status, grpc.StatusCode.INVALID_ARGUMENT)
            await context.abort(code, str(error))


def _fields(request: text_pb2.GenerateRequest) -> dict[str, Any]:
    """The request by the names of a completion's fields; what was not given is left out."""
    fields: dict[str, Any] = {"prompt": request.prompt, "top_k": request.top_k}
    for name in ("temperature", "top_p", "seed"):
        if request.HasField(name):
            fields[name] = getattr(request, name)
    if request.tokens:
        fields["max_tokens"] = request.tokens
    return {**fields, "stop": list(request.stop)}


async def start_text_server(desk: Desk, address: str) -> grpc.aio.Server:
    """A server that answers at `address`; raises UserError where it cannot be had."""
    server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=CALLS_MAX)
    text_pb2_grpc.add_TextServicer_to_server(TextServicer(desk), server)
    try:
        server.add_insecure_port(address)
        await server.start()
    except RuntimeError:
        raise UserError(
            f"cannot listen on {address}: the port is in use or the address is not this "
            "machine's; set --grpc"
        ) from None
    return server
