"""`shoal serve` as OpenAI's own client meets it, and as bad clients do."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import openai
import pytest

from shoal.node.errors import UserError
from shoal.node.local_model import continue_text
from shoal.node.serve import bind
from shoal.node.views import printable
from shoal.training.tokenizer import ByteTokenizer
from tests.node.served import certify, loopback

GREEDY: dict[str, Any] = {"model": "shoal", "temperature": 0}
TEMPLATE = (
    b"{% for each in messages %}<{{ each.role }}>{{ each.content }}{% endfor %}"
    b"{% if messages[0].role == 'assistant' %}{{ raise_exception('who asked?') }}{% endif %}<me>"
)
KEY = "a key of more than sixteen characters"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like a node's, with one checkpoint, to read."""
    root = tmp_path_factory.mktemp("served")
    certify(root, 5)
    return root


def write(checkpoint: Path, prompt: str, *, tokens: int) -> str:
    """What `shoal generate` prints."""
    return continue_text(checkpoint, prompt, base=None, tokens=tokens, temperature=0, seed=0)


def extra(answer: Any) -> Any:
    """What OpenAI's answers have not."""
    return answer.model_extra["shoal"]


async def read(stream: Any) -> tuple[str, list[Any]]:
    """The text of a stream and its events."""
    events = [event async for event in stream]
    return "".join(event.choices[0].text for event in events if event.choices), events


def test_a_stream_is_what_shoal_generate_writes_and_says_where_it_is_from(directory: Path) -> None:
    expected = write(directory / "checkpoints/5", "def ", tokens=24)

    async def story() -> None:
        async with loopback(directory) as here:
            ask: Any = {**GREEDY, "prompt": "def ", "max_tokens": 24}
            usage: Any = {"include_usage": True}
            stream = await here.openai.completions.create(**ask, stream=True, stream_options=usage)
            text, events = await read(stream)
            assert printable("def " + text) == expected
            assert events[-2].choices[0].finish_reason == "length"
            assert events[-1].usage.completion_tokens == 24
            raw = await here.openai.completions.with_raw_response.create(**ask)
            whole = raw.parse()
            assert whole.choices[0].text == text
            assert whole.usage.prompt_tokens_details.cached_tokens == 3
            origin = here.serving.served.origin
            assert raw.headers["shoal-height"] == "5" and raw.headers["shoal-root"] == origin.root
            for answer in (events[0], whole):
                assert answer.system_fingerprint == f"shoal-5-{origin.root[:16]}"
                assert extra(answer)["root"] == origin.root
            (model,) = (await here.openai.models.list()).data
            assert (model.id, extra(model)["height"]) == ("shoal", 5)

    asyncio.run(story())


def test_equal_seeds_write_equal_text_and_stop_strings_end_it(directory: Path) -> None:
    async def story() -> None:
        async with loopback(directory) as here:
            ask: Any = {"model": "shoal", "prompt": "class ", "max_tokens": 40, "top_p": 0.9}
            one, same, other = [
                (await here.openai.completions.create(**ask, seed=seed)).choices[0].text
                for seed in (1, 1, 2)
            ]
            assert one == same != other
            ended = await here.openai.completions.create(**ask, seed=1, stop=[one[8:10]])
            assert ended.choices[0].text == one[: one.index(one[8:10])]
            assert ended.choices[0].finish_reason == "stop"

    asyncio.run(story())


def test_two_clients_at_once_take_turns(directory: Path) -> None:
    async def story() -> None:
        async with loopback(directory) as here:
            arrived: list[str] = []

            async def client(name: str, tokens: int) -> None:
                ask: Any = {**GREEDY, "prompt": name, "max_tokens": tokens, "stream": True}
                async for _ in await here.openai.completions.create(**ask):
                    arrived.append(name)

            await asyncio.gather(client("long", 900), client("short", 20))
            # Who wants little has it long before who wants much.
            last = len(arrived) - 1 - arrived[::-1].index("short")
            assert arrived[last:].count("long") > arrived[:last].count("long")

    asyncio.run(story())


def test_who_goes_away_stops_the_generation(directory: Path) -> None:
    async def story() -> None:
        async with loopback(directory) as here:
            steps = []
            module = here.serving.served.model._module
            module.register_forward_hook(lambda *_: steps.append(1))
            ask: Any = {**GREEDY, "prompt": "def ", "max_tokens": 1000}
            async with await here.openai.completions.create(**ask, stream=True) as stream:
                await anext(aiter(stream))
            await here.until_answering(0)
            assert len(steps) < 900
            steps.clear()
            whole = asyncio.create_task(here.openai.completions.create(**ask))
            await here.until_answering(1)
            whole.cancel()
            await here.until_answering(0)
            assert len(steps) < 900

    asyncio.run(story())


def test_more_than_are_answered_at_a_time_are_told_to_come_again(directory: Path) -> None:
    async def story() -> None:
        async with loopback(directory, requests_max=1) as here:
            go_on = threading.Event()
            module = here.serving.served.model._module
            hook = module.register_forward_hook(lambda *_: go_on.wait(60) and None)
            ask: Any = {**GREEDY, "prompt": "def ", "max_tokens": 3}
            first = asyncio.create_task(here.openai.completions.create(**ask))
            await here.until_answering(1)
            with pytest.raises(openai.RateLimitError, match="try again soon"):
                await here.openai.completions.create(**ask)
            go_on.set()
            hook.remove()
            assert (await first).usage.completion_tokens == 3
            await here.openai.completions.create(**ask)

    asyncio.run(story())


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "template"])
def test_a_chat_is_written_as_the_tokenizer_says_or_else_plainly(
    tmp_path: Path, template: bytes | None
) -> None:
    files = ByteTokenizer().files()
    files |= {"chat_template.jinja": template} if template else {}
    checkpoint = certify(tmp_path, 5, tokenizer=files)
    prompt = "<system>Be a fish.<user>Who are you?<me>"
    if template is None:
        prompt = "system: Be a fish.\nuser: Who are you?\nassistant:"
    expected = write(checkpoint, prompt, tokens=16)

    async def story() -> None:
        async with loopback(tmp_path) as here:
            parts = [{"type": "text", "text": "Who are "}, {"type": "text", "text": "you?"}]
            messages: list[Any] = [
                {"role": "system", "content": "Be a fish."},
                {"role": "user", "content": parts},
            ]
            chat = here.openai.chat.completions
            ask: Any = {**GREEDY, "messages": messages, "max_completion_tokens": 16}
            whole = await chat.create(**ask)
            assert printable(prompt + whole.choices[0].message.content) == expected
            assert whole.usage.prompt_tokens == len(prompt)
            events = [event async for event in await chat.create(**ask, stream=True)]
            assert events[0].choices[0].delta.role == "assistant"
            text = "".join(event.choices[0].delta.content for event in events)
            assert printable(prompt + text) == expected
            if template is not None:
                messages[0]["role"] = "assistant"
                with pytest.raises(openai.BadRequestError, match="who asked"):
                    await chat.create(**ask)

    asyncio.run(story())


COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
OK = {"model": "shoal", "prompt": "x"}
BAD: list[tuple[str, Any, int, str]] = [
    (COMPLETE, b"{", 400, "not JSON"),
    (COMPLETE, b"[" * 100_000, 400, "not JSON"),
    (COMPLETE, [], 400, "not a JSON object"),
    (COMPLETE, {**OK, "model": "gpt-4"}, 404, 'it is called "shoal"'),
    (COMPLETE, {"model": "shoal"}, 400, "prompt"),
    (COMPLETE, {**OK, "prompt": ""}, 400, "prompt is empty"),
    (COMPLETE, {**OK, "prompt": ["a", "b"]}, 400, "prompt"),
    (COMPLETE, {**OK, "prompt": "\ud800"}, 400, "surrogate"),
    (COMPLETE, {**OK, "prompt": "x" * 1024}, 400, "shorten it"),
    (COMPLETE, {**OK, "max_tokens": 1024}, 400, "shorten one of them"),
    (COMPLETE, {**OK, "max_tokens": 0}, 400, "max_tokens should be greater"),
    (COMPLETE, {**OK, "max_tokens": 10**9}, 400, "max_tokens"),
    (COMPLETE, {**OK, "max_tokens": "9"}, 400, "max_tokens"),
    (COMPLETE, {**OK, "temperature": -1}, 400, "temperature"),
    (COMPLETE, b'{"prompt": "x", "temperature": NaN}', 400, "temperature"),
    (COMPLETE, {**OK, "top_p": 0}, 400, "top_p"),
    (COMPLETE, {**OK, "seed": 1 << 64}, 400, "seed"),
    (COMPLETE, {**OK, "stop": ["", "x"]}, 400, "stop.0"),
    (COMPLETE, {**OK, "stop": list("abcde")}, 400, "stop"),
    (COMPLETE, {**OK, "n": 2}, 400, "n should be less"),
    (COMPLETE, {**OK, "logprobs": 3}, 400, "logprobs is not served here"),
    (COMPLETE, b"x" * ((1 << 20) + 1), 413, "bytes"),
    (CHAT, {"model": "shoal", "messages": []}, 400, "messages"),
    (CHAT, {"model": "shoal", "messages": [{"role": "fish", "content": "x"}]}, 400, "role"),
    (CHAT, {"model": "shoal", "messages": [{"role": "user", "content": [{}]}]}, 400, "content"),
    (CHAT, {**OK, "messages": [{"role": "user", "content": "x"}]}, 400, "prompt is not served"),
    ("/v1/embeddings", OK, 404, "there are /v1/models"),
    (COMPLETE, None, 405, "GET /v1/completions"),
]


def test_bad_requests_get_one_line_in_openais_shape(directory: Path) -> None:
    async def story() -> None:
        async with loopback(directory) as here:
            for path, body, status, line in BAD:
                got, content = await here.ask(path, body)
                error = content["error"]
                assert (got, line in error["message"]) == (status, True), (path, body, content)
                assert "\n" not in error["message"] and error["type"] == "invalid_request_error"
            shown = {"content-type": "text/plain"}
            assert (await here.ask(COMPLETE, OK, **shown))[0] == 415
            assert (await here.ask(COMPLETE, {**OK, "user": None, "max_tokens": 1}))[0] == 200
            await here.until_answering(0)

    asyncio.run(story())


def test_who_has_no_key_and_whoever_calls_it_by_another_name_is_not_let_in(directory: Path) -> None:
    async def story() -> None:
        async with loopback(directory, key=KEY) as here:
            assert len((await here.openai.models.list()).data) == 1
            for each in ("", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ключ"):
                status, content = await here.ask("/v1/models", authorization=each.encode())
                assert (status, content["error"]["code"]) == (401, "invalid_api_key")
            assert (await here.ask("/health"))[0] == 200
            shown = f"Bearer {KEY}".encode()
            assert (await here.ask("/v1/models", host="fish", authorization=shown))[0] == 200
        async with loopback(directory) as here:
            assert (await here.ask("/v1/models", host="localhost:1"))[0] == 200
            assert (await here.ask("/v1/models", host="rebound.example"))[0] == 403

    asyncio.run(story())


def test_a_newer_checkpoint_is_served_and_what_began_with_the_older_one_ends_with_it(
    tmp_path: Path,
) -> None:
    certify(tmp_path, 5)

    async def story() -> None:
        async with loopback(tmp_path) as here:
            ask: Any = {**GREEDY, "prompt": "def ", "max_tokens": 24}
            old = (await here.openai.completions.create(**ask)).choices[0].text
            stream = aiter(await here.openai.completions.create(**ask, stream=True))
            begun = await anext(stream)
            damaged = certify(tmp_path, 7) / "model.safetensors"
            damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
            newer = certify(tmp_path, 6)
            damaged.parent.rename(tmp_path / "7")
            expected = write(newer, "def ", tokens=24)
            while (answer := await here.openai.completions.create(**ask)).choices[0].text == old:
                pass
            assert printable("def " + answer.choices[0].text) == expected
            assert extra(answer)["height"] == 6
            rest = [event async for event in stream]
            assert begun.choices[0].text + "".join(each.choices[0].text for each in rest) == old
            assert {extra(each)["height"] for each in rest} == {5}

    asyncio.run(story())


def test_a_token_does_not_wait_for_the_next() -> None:
    with bind("127.0.0.1:0") as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            # By this asyncio decides whether to switch Nagle's algorithm off.
            assert accepted.proto == socket.IPPROTO_TCP
        with pytest.raises(UserError, match=r"Address already in use; set --listen"):
            bind("{}:{}".format(*listener.getsockname()))


def test_the_command_serves_until_it_is_told_to_end(directory: Path) -> None:
    words = [sys.executable, "-m", "shoal.node", "serve", str(directory)]
    with subprocess.Popen(
        [*words, "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            started = json.loads(process.stderr.readline())
            assert (started["event"], started["height"]) == ("serve.listening", 5)
            with openai.OpenAI(
                base_url=started["url"],
                api_key="none",
                http_client=openai.DefaultHttpxClient(trust_env=False),
            ) as client:
                answer = client.completions.create(**GREEDY, prompt="def ", max_tokens=2)
            assert answer.usage is not None and answer.usage.completion_tokens == 2
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
