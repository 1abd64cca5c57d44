"""`shoal serve --grpc`: the same text as everywhere else, streamed to any gRPC client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.node.errors import UserError
from shoal.node.local_model import continue_text
from shoal.node.views import printable
from shoal.proto.text_pb2 import GenerateReply, GenerateRequest
from shoal.proto.text_pb2_grpc import TextStub
from tests.node.mesh import any_address
from tests.node.served import Loopback, certify, loopback

KEY = "a key of more than sixteen characters"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    certify(root, 5)
    return root


@asynccontextmanager
async def text_stub(directory: Path, **how: Any) -> AsyncIterator[tuple[Any, Loopback]]:
    address = any_address()
    async with (
        loopback(directory, grpc=address, **how) as here,
        grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        await asyncio.wait_for(channel.channel_ready(), 30)
        yield TextStub(channel), here


async def read(stub: Any, request: GenerateRequest, **how: Any) -> list[GenerateReply]:
    return [reply async for reply in stub.Generate(request, timeout=60, **how)]


async def refusal(stub: Any, request: GenerateRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(stub, request)
    return caught.value.code(), str(caught.value.details())


def test_it_streams_what_shoal_generate_writes_and_says_where_it_is_from(directory: Path) -> None:
    expected = continue_text(
        directory / "checkpoints/5", "def ", base=None, tokens=24, temperature=0, seed=0
    )

    async def story() -> None:
        async with text_stub(directory) as (stub, here):
            request = GenerateRequest(prompt="def ", tokens=24, temperature=0)
            replies = await read(stub, request)
            assert printable("def " + "".join(reply.text for reply in replies)) == expected
            assert len(replies) > 2, "piece by piece"
            last, origin = replies[-1], here.serving.served.origin
            assert (last.tokens, last.finish, last.prompt_tokens) == (24, "length", 4)
            assert {(r.height, r.root, r.mesh) for r in replies} == {(5, origin.root, origin.mesh)}
            by_http = await here.openai.completions.create(
                model="shoal", prompt="def ", max_tokens=24, temperature=0
            )
            assert by_http.choices[0].text == "".join(reply.text for reply in replies)

    asyncio.run(story())


def test_a_mean_says_of_which_checkpoints_it_is(tmp_path: Path) -> None:
    async def story() -> None:
        async with text_stub(tmp_path, average=2) as (stub, here):
            request = GenerateRequest(prompt="def ", tokens=2, temperature=0)
            (*_, last) = await read(stub, request)
            assert (last.height, list(last.averaged)) == (6, [5, 6])
            status, body = await here.ask("/health")
            assert status == 200 and body["shoal"]["averaged"] == [5, 6]

    for height in (5, 6):
        certify(tmp_path, height)
    asyncio.run(story())


def test_equal_seeds_give_equal_text_and_the_rest_is_drawn(directory: Path) -> None:
    async def story() -> None:
        async with text_stub(directory) as (stub, _):

            async def write(seed: int) -> str:
                request = GenerateRequest(prompt="def ", tokens=24, seed=seed, top_p=0.9)
                return "".join(reply.text for reply in await read(stub, request))

            assert await write(-7) == await write(-7) != await write(8)

    asyncio.run(story())


def test_what_is_wrong_with_a_request_is_said(directory: Path) -> None:
    async def story() -> None:
        async with text_stub(directory) as (stub, _):
            wrong = {
                "prompt is empty": GenerateRequest(),
                "shorten it": GenerateRequest(prompt="x" * 5000),
                "temperature": GenerateRequest(prompt="x", temperature=9),
                "top_p": GenerateRequest(prompt="x", top_p=float("nan")),
                "max_tokens": GenerateRequest(prompt="x", tokens=5000),
                "stop": GenerateRequest(prompt="x", stop=["a", "b", "c", "d", "e"]),
            }
            for words, request in wrong.items():
                code, why = await refusal(stub, request)
                assert code == grpc.StatusCode.INVALID_ARGUMENT and words in why
            assert await read(stub, GenerateRequest(prompt="x", tokens=1))

    asyncio.run(story())


def test_only_who_shows_the_key_is_answered(directory: Path) -> None:
    async def story() -> None:
        async with text_stub(directory, key=KEY) as (stub, _):
            request = GenerateRequest(prompt="x", tokens=1)
            assert (await refusal(stub, request))[0] == grpc.StatusCode.UNAUTHENTICATED
            shown = (("authorization", f"Bearer {KEY}"),)
            assert await read(stub, request, metadata=shown)

    asyncio.run(story())


def test_who_goes_away_gives_back_a_place_that_http_shares(directory: Path) -> None:
    async def story() -> None:
        async with text_stub(directory, requests_max=1) as (stub, here):
            call = stub.Generate(GenerateRequest(prompt="x", tokens=100), timeout=60)
            await call.read()
            code, why = await refusal(stub, GenerateRequest(prompt="x"))
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED and "try again" in why
            assert (await here.ask("/v1/completions", {"prompt": "x"}))[0] == 429
            call.cancel()
            await here.until_answering(0)
            assert await read(stub, GenerateRequest(prompt="x", tokens=1))

    asyncio.run(story())


def test_a_port_that_is_taken_is_one_line(directory: Path) -> None:
    async def story() -> None:
        async with text_stub(directory) as (_, here):
            taken = f"127.0.0.1:{here.port}"
            with pytest.raises(UserError, match="set --grpc"):
                async with loopback(directory, grpc=taken):
                    pass

    asyncio.run(story())
