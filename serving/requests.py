"""Requests as OpenAI's clients send them, checked.

A field that would change the answer and is not served is refused, not ignored: a wrong answer that
looks right costs more than an error.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from shoal.serving.errors import RequestError
from shoal.serving.text_model import Sampling

# What a client calls the model, whichever checkpoint it is.
MODEL = "shoal"
BODY_BYTES_MAX = 1 << 20
TOKENS_MAX = 4096
# What a completion gets that does not say how much it wants, as of OpenAI; a chat gets more.
COMPLETION_TOKENS = 16
CHAT_TOKENS = 512
# Where a chat goes without a template of its own (plain_chat).
PLAIN_CHAT_STOP = "\nuser:"


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _only_one(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _joined(value: object) -> object:
    """The text of a message in parts; anything else is left for pydantic to refuse."""
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in value
    ):
        return "".join(part["text"] for part in value)
    return value


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StreamOptions(_Model):
    """What else a stream should say."""

    include_usage: bool = False


class Request(_Model):
    """What both kinds of request have."""

    model: Literal["shoal"]
    max_tokens: Annotated[int | None, Field(ge=1, le=TOKENS_MAX)] = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int | None, Field(ge=-(1 << 63), lt=1 << 63)] = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]],
        Field(max_length=4),
        BeforeValidator(_as_list),
    ] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str = ""
    # Understood, and only this much of it is served.
    n: Annotated[int, Field(ge=1, le=1)] = 1
    presence_penalty: Annotated[float, Field(ge=0, le=0)] = 0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] = 0

    def sampling(self, *, room: int, seed: int, stop: Sequence[str] = ()) -> Sampling:
        """Return how the model is to go on.

        room: tokens that there may be at most; seed: where the request names none; stop: strings
        that end the text besides the request's.
        """
        wanted = self.tokens_wanted
        return Sampling(
            tokens_max=min(room, self.tokens_by_default) if wanted is None else wanted,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=seed if self.seed is None else self.seed,
            stop=(*self.stop, *stop),
        )

    @property
    def tokens_wanted(self) -> int | None:
        """How many tokens the client asks for, if it does."""
        return self.max_tokens

    @property
    def tokens_by_default(self) -> int:
        """How many it gets else, at most."""
        return COMPLETION_TOKENS


class CompletionRequest(Request):
    """POST /v1/completions."""

    prompt: Annotated[str, BeforeValidator(_only_one)]


class Message(_Model):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined)]
    name: str = ""


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=TOKENS_MAX)] = None

    @property
    def tokens_wanted(self) -> int | None:
        """How many tokens the client asks for, by the newer name or the older one."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def tokens_by_default(self) -> int:
        """How many it gets else, at most."""
        return CHAT_TOKENS


def parse_request(kind: type[Request], body: bytes) -> Request:
    """Return the request in `body`; raises RequestError, which names the field that is wrong."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON") from None
    if not isinstance(content, dict):
        raise RequestError("the body is not a JSON object")
    return check_request(kind, content)


def check_request(kind: type[Request], content: Mapping[str, Any]) -> Request:
    """Return a request of these fields; raises RequestError, which names the one that is wrong."""
    if (model := content.get("model", MODEL)) != MODEL:
        raise RequestError(
            f'there is no model {model!r:.80} here; it is called "{MODEL}"',
            status=404,
            parameter="model",
            code="model_not_found",
        )
    # null stands for "not said", as with OpenAI.
    given = {name: value for name, value in content.items() if value is not None}
    try:
        return kind.model_validate({"model": MODEL, **given})
    except ValidationError as error:
        raise _refusal(error) from None


def plain_chat(messages: list[dict[str, str]]) -> str:
    """Return a conversation as text, for models whose tokenizer has no chat template.

    One "role: content" a line, and "assistant:" for the model to go on from.
    """
    lines = [f"{message['role']}: {message['content']}" for message in messages]
    return "\n".join([*lines, "assistant:"])


def _refusal(error: ValidationError) -> RequestError:
    first: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return RequestError(f"{name:.80} is not served here; leave it out", parameter=name[:80])
    why = first["msg"].removeprefix("Input ")
    return RequestError(f"{name:.80} {why[:1].lower()}{why[1:]}", parameter=name[:80])
