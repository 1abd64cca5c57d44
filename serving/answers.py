"""Answers in the shapes that OpenAI's clients expect, each with the checkpoint that gave it."""

from dataclasses import dataclass
from typing import Any

from shoal.serving.requests import MODEL
from shoal.serving.text_model import Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which certified checkpoint a model is: everybody can check it with `shoal verify`.

    averaged: where it is the mean of several, the heights of all; height and root are the newest's.
    """

    height: int
    root: str
    mesh: str
    averaged: tuple[int, ...] = ()

    @property
    def fingerprint(self) -> str:
        """OpenAI's word for what a client compares to see that the model has changed."""
        mean = f"-mean{len(self.averaged)}" if self.averaged else ""
        return f"shoal-{self.height}-{self.root[:16]}{mean}"

    @property
    def headers(self) -> dict[str, str]:
        """The same for whoever does not read the body."""
        return {"shoal-height": str(self.height), "shoal-root": self.root}

    def to_json(self) -> dict[str, Any]:
        """The field "shoal" of an answer."""
        said = {"height": self.height, "root": self.root, "mesh": self.mesh}
        return {**said, "averaged": list(self.averaged)} if self.averaged else said


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer, whole or in parts. chat: of a chat, not of a completion."""

    number: int
    created: int
    chat: bool
    prompt_tokens: int
    origin: Origin

    def whole(self, text: str, last: Piece) -> dict[str, Any]:
        """Return all of it at once."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {
            **self._head("chat.completion" if self.chat else "text_completion"),
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": last.finish}],
            "usage": self._usage(last),
        }

    def part(self, text: str, finish: str = "", *, first: bool = False) -> dict[str, Any]:
        """Return one event of a stream."""
        role = {"role": "assistant"} if first else {}
        said = {"delta": {**role, "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish or None}
        return {**self._part_head(), "choices": [choice]}

    def usage_part(self, last: Piece) -> dict[str, Any]:
        """Return the last event of a stream, for whoever asked for it."""
        return {**self._part_head(), "choices": [], "usage": self._usage(last)}

    def _part_head(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self.chat else "text_completion")

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.number:016x}",
            "object": kind,
            "created": self.created,
            "model": MODEL,
            "system_fingerprint": self.origin.fingerprint,
            "shoal": self.origin.to_json(),
        }

    def _usage(self, last: Piece) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": last.tokens,
            "total_tokens": self.prompt_tokens + last.tokens,
            "prompt_tokens_details": {"cached_tokens": last.reused},
        }


def error_body(
    message: str, status: int, *, parameter: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
    kind = kinds.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
