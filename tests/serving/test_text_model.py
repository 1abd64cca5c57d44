"""Text from weights: the same as transformers writes, in turns, and without reading twice."""

from itertools import zip_longest
from typing import Any

import pytest
import torch

from shoal.serving.errors import RequestError
from shoal.serving.prefix_cache import PrefixCache
from shoal.serving.text_model import PREFILL_TOKENS, TextModel
from shoal.training.model import FlatModel, build_model
from shoal.training.tokenizer import ByteTokenizer
from tests.serving.models import SMALL, make_model, start, text_of

LONG = "one fish two fish red fish blue fish " * 12


@pytest.fixture(scope="module")
def model() -> TextModel:
    return make_model()


def by_transformers(prompt: str, **how: Any) -> str:
    module: Any = build_model(SMALL, seed=0).eval()
    tokens = torch.tensor([list(prompt.encode())])
    written = module.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=24, pad_token_id=0, **how
    )[0, tokens.shape[1] :].tolist()
    return ByteTokenizer().decode(written[: written.index(0)] if 0 in written else written)


@pytest.mark.parametrize("prompt", ["d", "import ", LONG])
def test_greedy_text_is_what_transformers_writes(model: TextModel, prompt: str) -> None:
    assert len(LONG) > PREFILL_TOKENS, "it is read in parts"
    expected = by_transformers(prompt, do_sample=False)
    assert text_of(start(model, prompt)) == expected != ""
    # Again, from what was kept of the first time.
    assert text_of(start(model, prompt)) == expected


@pytest.mark.parametrize("how", [{}, {"top_k": 20}, {"top_p": 0.5}, {"top_k": 50, "top_p": 0.9}])
def test_drawn_text_is_what_transformers_draws(model: TextModel, how: dict[str, Any]) -> None:
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected = by_transformers(
                "def ", do_sample=True, temperature=0.7, **{"top_k": 0, "top_p": 1.0, **how}
            )
        assert text_of(start(model, "def ", temperature=0.7, seed=seed, **how)) == expected


def test_streams_that_take_turns_write_what_each_writes_alone(model: TextModel) -> None:
    prompts = ["def ", "class ", LONG]
    alone = [text_of(start(make_model(), each, temperature=1, seed=7)) for each in prompts]
    streams = [start(model, each, temperature=1, seed=7) for each in prompts]
    turns = zip_longest(*streams)
    pieces = [[piece.text for piece in stream if piece] for stream in zip(*turns, strict=True)]
    assert ["".join(texts) for texts in pieces] == alone


def test_a_model_that_has_learned_a_line_says_it_and_stops() -> None:
    flat = FlatModel(build_model(SMALL, seed=0))
    line = torch.tensor([list(b"one fish two fish red fish\0")])
    optimizer = torch.optim.AdamW(flat.module.parameters(), lr=1e-2)
    for _ in range(120):
        flat.gradient.zero_()
        flat.loss(line).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model = TextModel(flat.module, ByteTokenizer())
    pieces = list(start(model, "one fish", tokens_max=40))
    assert "".join(piece.text for piece in pieces) == " two fish red fish"
    assert [piece.finish for piece in pieces][-2:] == ["", "stop"]
    pieces = list(start(model, "one fish", tokens_max=40, stop=["red", "fish r"]))
    assert "".join(piece.text for piece in pieces) == " two "
    assert pieces[-1].finish == "stop"
    cut = list(start(model, "one fish", tokens_max=4))
    assert (cut[-1].finish, cut[-1].tokens) == ("length", 4)


def test_what_was_read_before_is_not_read_again() -> None:
    model, read = make_model(), list[int]()
    model._module.register_forward_pre_hook(
        lambda module, _, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    first = list(start(model, LONG + "red", tokens_max=1))
    assert first[-1].reused == 0 and sum(read) == len(LONG) + 3
    read.clear()
    second = list(start(model, LONG + "blue", tokens_max=1))
    assert second[-1].reused == len(LONG) and sum(read) == 4
    # A reader who goes away leaves what was read.
    broken_off = start(model, "x" * 600)
    next(broken_off), next(broken_off)
    broken_off.close()
    assert list(start(model, "x" * 600, tokens_max=1))[-1].reused == 2 * PREFILL_TOKENS


def test_few_prefixes_are_kept_and_few_bytes() -> None:
    model = make_model()
    per_token = 2 * 4 * SMALL["hidden_size"] * SMALL["num_hidden_layers"]
    config: Any = model._module.config
    model._prefixes = PrefixCache(config, entries_max=2, bytes_max=100 * per_token)
    for first in "abc":
        list(start(model, first * 20, tokens_max=1))
    assert model._prefixes.bytes == 40 * per_token
    reused = {first: list(start(model, first * 20, tokens_max=1))[-1].reused for first in "cba"}
    assert reused == {"c": 19, "b": 19, "a": 0}
    list(start(model, "d" * 90, tokens_max=1))
    assert model._prefixes.bytes == 90 * per_token
    list(start(model, "e" * 101, tokens_max=1))
    assert list(start(model, "d" * 90, tokens_max=1))[-1].reused == 89


def test_a_model_that_forgets_begins_anew_every_time() -> None:
    sliding: Any = {"model_type": "mistral", "sliding_window": 16, "num_key_value_heads": 2}
    model = make_model(**sliding)
    expected = text_of(start(model, LONG))
    again = list(start(model, LONG))
    assert again[-1].reused == 0
    assert "".join(piece.text for piece in again) == expected


def test_what_cannot_be_continued_is_refused(model: TextModel) -> None:
    with pytest.raises(RequestError, match="prompt is empty"):
        start(model, "")
    with pytest.raises(RequestError, match=r"1020 tokens of prompt and 5 new .* the 1024"):
        start(model, "x" * 1020, tokens_max=5)
    with pytest.raises(RequestError, match="has 1024 tokens"):
        start(model, "x" * 1024)
    with pytest.raises(RequestError, match="tokens that the model does not know"):
        start(make_model(vocab_size=100), "x")
