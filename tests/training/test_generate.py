"""Text from weights."""

import pytest
import torch

from shoal.training.errors import TrainingError
from shoal.training.generate import sample
from shoal.training.model import FlatModel, build_model
from shoal.training.tokenizer import ByteTokenizer
from tests.training.worker_process import TINY_BERT, TINY_MODEL


@pytest.fixture(scope="module")
def model() -> FlatModel:
    return FlatModel(build_model(TINY_MODEL, seed=0))


def continuation(
    model: FlatModel,
    prompt: str,
    *,
    new_tokens: int | None = 12,
    temperature: float = 1.0,
    seed: int = 1,
) -> str:
    return sample(
        model,
        ByteTokenizer(),
        prompt,
        new_tokens=new_tokens,
        temperature=temperature,
        seed=seed,
    )


def test_equal_seeds_write_equal_text(model: FlatModel) -> None:
    assert continuation(model, "def ") == continuation(model, "def ") != ""
    assert continuation(model, "def ") != continuation(model, "def ", seed=2)
    assert model.module.training


def test_without_temperature_each_token_is_the_likeliest(model: FlatModel) -> None:
    context = list(b"import ")
    for _ in range(6):
        context.append(int(model.module(torch.tensor([context])).logits[0, -1].argmax()))
    expected = ByteTokenizer().decode(context[7:])
    assert continuation(model, "import ", new_tokens=6, temperature=0) == expected


def test_a_model_that_has_learned_a_line_says_it() -> None:
    model = FlatModel(build_model(TINY_MODEL, seed=0))
    line = torch.tensor([list(b"one fish two fish red fish\0")])
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-2)
    for _ in range(120):
        model.gradient.zero_()
        model.loss(line).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # It also stops by itself: byte 0 ends a document.
    assert continuation(model, "one fish", new_tokens=40, temperature=0) == " two fish red fish"


def test_what_cannot_be_continued_is_refused(model: FlatModel) -> None:
    with pytest.raises(TrainingError, match="this is a masked model"):
        continuation(FlatModel(build_model(TINY_BERT, seed=0)), "def ")
    with pytest.raises(TrainingError, match="prompt is empty"):
        continuation(model, "")
    with pytest.raises(TrainingError, match=r"60 tokens of prompt and 5 new ones .* the 64"):
        continuation(model, "x" * 60, new_tokens=5)


def test_who_does_not_say_how_much_gets_what_there_is_room_for(model: FlatModel) -> None:
    without_end = {**TINY_MODEL, "eos_token_id": None}
    endless = FlatModel(build_model(without_end, seed=0))
    assert len(continuation(endless, "x" * 60, new_tokens=None, temperature=0).encode()) >= 4
    with pytest.raises(TrainingError, match=r"64 tokens of prompt and 1 new ones"):
        continuation(model, "x" * 64, new_tokens=None)
