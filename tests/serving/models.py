"""Small models to continue text with."""

from typing import Any

from shoal.serving.text_model import Sampling, Stream, TextModel
from shoal.training.model import build_model
from shoal.training.tokenizer import ByteTokenizer

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def make_model(seed: int = 0, **changes: Any) -> TextModel:
    return TextModel(build_model({**SMALL, **changes}, seed=seed), ByteTokenizer())


def start(model: TextModel, prompt: str, **sampling: Any) -> Stream:
    how = Sampling(**{"tokens_max": 24, "temperature": 0, **sampling})
    return model.stream(model.encode(prompt), how)


def text_of(stream: Stream) -> str:
    return "".join(piece.text for piece in stream)
