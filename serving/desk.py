"""Who is served next, whoever asks and over whatever protocol.

Without sockets, clock or threads of its own: it is told who does the blocking work. That one thread
makes one token of one stream at a time, in the order in which they are asked for, so clients take
turns; and a stream is asked for its next token when its client has taken the one before, so nothing
piles up and nobody has to be told that a client has gone.
"""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shoal.serving.answers import Origin
from shoal.serving.errors import RequestError
from shoal.serving.requests import (
    PLAIN_CHAT_STOP,
    ChatRequest,
    CompletionRequest,
    Request,
    plain_chat,
)
from shoal.serving.text_model import Piece, Sampling, Stream, TextModel

REQUESTS_MAX = 16


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


@dataclass(frozen=True, slots=True)
class Begun:
    """A request that is being answered: by what, after how many tokens of prompt, and the text.

    pieces: to be closed (`contextlib.aclosing`) whether or not it was read to its end.
    """

    served: Served
    prompt_tokens: int
    pieces: AsyncGenerator[Piece, None]


class Key:
    """What clients must show as "Bearer KEY"; "" lets everybody in."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest() if key else b""

    def is_shown(self, authorization: str) -> bool:
        """Whether this header or metadata has it."""
        kind, _, shown = authorization.partition(" ")
        # Hashes, so that not even its length can be told from how long this takes.
        digest = hashlib.sha256(shown.strip().encode()).digest()
        return not self._digest or (
            kind.lower() == "bearer" and hmac.compare_digest(digest, self._digest)
        )


class Desk:
    """Takes requests, at most so many at a time."""

    def __init__(self, given: Surroundings) -> None:
        self.given = given
        self.busy = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places; raises RequestError when all are taken."""
        if self.busy >= self.given.requests_max:
            raise RequestError(
                f"{self.busy} requests are being answered, which is all that is done at a time; "
                "try again soon",
                status=429,
                code="rate_limit_exceeded",
            )
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    async def begin(self, asked: Request, seed: int) -> Begun:
        """Prepare the answer to a request that has a place; raises RequestError.

        seed: for a request that names none.
        """
        served = self.given.current()
        prompt, sampling = await asyncio.to_thread(_prepare, served, asked, seed)
        return Begun(served, len(prompt), self._pieces(served.model.stream(prompt, sampling)))

    async def _pieces(self, stream: Stream) -> AsyncGenerator[Piece, None]:
        """Advance a stream in the thread that does so, and end it there."""
        try:
            while (piece := await self.given.run(lambda: next(stream, None))) is not None:
                yield piece
        finally:
            # Done even where waiting for it is cancelled, and after what is under way.
            await self.given.run(stream.close)


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
