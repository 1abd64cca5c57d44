"""Text from a language model, piece by piece, as it comes about.

The model, its cache of keys and values and what temperature, top-k and top-p mean are
transformers'. Its `generate` is not used: it draws from torch's one global generator, and gives
nobody else a turn until it has finished.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shoal.serving.errors import RequestError
from shoal.serving.prefix_cache import PrefixCache
from shoal.serving.text import Detokenizer, StopStrings

# A prompt is read in parts of this size, so that a long one does not keep others waiting.
PREFILL_TOKENS = 256
# Below it a temperature leaves nothing to draw, and numbers overflow.
TEMPERATURE_MIN = 1e-4
# Where a model's configuration does not say how much it can look at.
CONTEXT_TOKENS = 4096

Finish = Literal["", "stop", "length"]


class Tokenizer(Protocol):
    """What is needed of one."""

    def encode(self, text: str) -> Any:
        """Return the tokens of `text`, a sequence of numbers."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """Return the text of `tokens`; bytes that are no UTF-8 become U+FFFD."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to go on. temperature 0 always takes the likeliest token, 1 draws as the model expects.

    top_k: only from so many likeliest tokens, 0 for all; top_p: only from the likeliest that
    together have this probability; stop: the text ends before the first of these.
    """

    tokens_max: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more text, maybe none.

    tokens: generated so far; reused: of the prompt's tokens, those that an earlier text had too;
    finish: "" but for the last piece, then whether it stopped by itself or for its length.
    """

    text: str
    tokens: int
    reused: int
    finish: Finish = ""


Stream = Generator[Piece, None, None]


class TextModel:
    """A causal language model of transformers with its tokenizer and the prefixes it has read.

    Not for two threads at once; streams that one thread advances in turn do not see each other.
    """

    def __init__(self, module: torch.nn.Module, tokenizer: Tokenizer) -> None:
        self._module = module.eval()
        self._tokenizer = tokenizer
        config: Any = module.config
        self._prefixes = PrefixCache(config)
        self.vocabulary_size = int(config.vocab_size)
        self.context_tokens = int(
            getattr(config, "max_position_embeddings", None) or CONTEXT_TOKENS
        )
        ends = getattr(config, "eos_token_id", None)
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt; raises RequestError for one that is no Unicode text.

        Any thread may ask.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("the prompt has half of a surrogate pair in it") from None
        return [int(token) for token in self._tokenizer.encode(text)]

    def room(self, prompt: Sequence[int]) -> int:
        """Return how many tokens may follow `prompt`.

        Raises RequestError for one that is empty, too long or has tokens that the model lacks.
        """
        if not prompt:
            raise RequestError("the prompt is empty; give the model something to continue")
        if max(prompt) >= self.vocabulary_size:
            raise RequestError("the tokenizer has tokens that the model does not know")
        if len(prompt) >= self.context_tokens:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens and the model can look at "
                f"{self.context_tokens}; shorten it",
                code="context_length_exceeded",
            )
        return self.context_tokens - len(prompt)

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Stream:
        """Return the pieces that follow `prompt`; nothing is computed before they are asked for.

        Equal arguments give equal text. Raises RequestError as `room` does, and for more than
        there is room for.
        """
        if sampling.tokens_max > self.room(prompt):
            raise RequestError(
                f"{len(prompt)} tokens of prompt and {sampling.tokens_max} new ones are more than "
                f"the {self.context_tokens} that the model can look at; shorten one of them",
                code="context_length_exceeded",
            )
        return self._stream(list(prompt), sampling)

    def _stream(self, tokens: list[int], sampling: Sampling) -> Stream:
        choose, stop = _Choice(sampling), StopStrings(sampling.stop)
        characters = Detokenizer(self._tokenizer.decode)
        cache, reused = self._prefixes.begin(tokens)
        try:
            for start in range(reused, len(tokens), PREFILL_TOKENS):
                if start > reused:
                    yield Piece("", 0, reused)
                logits = self._logits(tokens[start : start + PREFILL_TOKENS], cache)
            finish: Finish = "length"
            for count in range(1, sampling.tokens_max + 1):
                token = choose(logits)
                if token in self._ends:
                    finish = "stop"
                    break
                tokens.append(token)
                text, stopped = stop.add(characters.add(token))
                if stopped:
                    yield Piece(text, count, reused, "stop")
                    return
                yield Piece(text, count, reused)
                if count < sampling.tokens_max:
                    logits = self._logits([token], cache)
            text, stopped = stop.end(characters.rest())
            yield Piece(text, count, reused, "stop" if stopped else finish)
        finally:
            self._prefixes.keep(tokens, cache)

    @torch.inference_mode()
    def _logits(self, tokens: list[int], cache: DynamicCache) -> torch.Tensor:
        """Return the logits [1, vocabulary] after `tokens`, which the cache then holds too."""
        output = self._module(
            input_ids=torch.tensor([tokens], device=next(self._module.parameters()).device),
            past_key_values=cache,
            use_cache=True,
        )
        if getattr(output, "past_key_values", None) is not cache:
            raise RequestError(
                f"{type(self._module).__name__} does not use transformers' cache of keys and "
                "values, so it cannot be served"
            )
        logits: torch.Tensor = output.logits[:, -1].float().cpu()
        return logits


class _Choice:
    """Draws tokens, each stream from a generator of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self._greedy = sampling.temperature < TEMPERATURE_MIN
        self._generator = torch.Generator().manual_seed(sampling.seed)
        # In the order in which transformers applies them.
        self._warpers = LogitsProcessorList()
        self._no_text: Any = torch.empty((1, 0), dtype=torch.int64)
        if not self._greedy and sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, logits: torch.Tensor) -> int:
        """Return the next token, given the logits [1, vocabulary]."""
        if self._greedy:
            return int(logits.argmax())
        # They look at the logits alone, not at the text so far.
        scores = self._warpers(self._no_text, logits)
        probabilities = torch.softmax(scores, dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
