"""Text from weights: one token at a time, each drawn from what the model expects next."""

from typing import Any

import torch

from shoal.training.errors import TrainingError
from shoal.training.model import FlatModel
from shoal.training.tokenizer import Tokenizer

NEW_TOKENS = 200


def sample(
    model: FlatModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    new_tokens: int | None,
    temperature: float,
    seed: int,
) -> str:
    """Return the prompt's continuation: at most `new_tokens` tokens, fewer at a document's end.

    new_tokens: None for 200, or as many as there is room for. temperature: 0 always takes the
    likeliest token, 1 draws as the model expects. Equal arguments give equal text. Raises
    TrainingError for a masked model, an empty prompt and more than the model can see.
    """
    if model.mask_token is not None:
        raise TrainingError("this is a masked model: it fills in hidden tokens, it writes no text")
    context = [int(token) for token in tokenizer.encode(prompt)]
    if not context:
        raise TrainingError("the prompt is empty; give the model something to continue")
    limit = model.context_length
    if new_tokens is None:
        room = NEW_TOKENS if limit is None else limit - len(context)
        new_tokens = max(1, min(NEW_TOKENS, room))
    if limit is not None and len(context) + new_tokens > limit:
        raise TrainingError(
            f"{len(context)} tokens of prompt and {new_tokens} new ones are more than the "
            f"{limit} that the model can look at; shorten one of them"
        )
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    pending, cache = torch.tensor([context], device=model.device), None
    model.module.eval()
    try:
        with torch.no_grad():
            for _ in range(new_tokens):
                logits, cache = _next_logits(model, pending, cache)
                token = _draw(logits, temperature, generator)
                if token == model.end_token:
                    break
                tokens.append(token)
                pending = torch.tensor([[token]], device=model.device)
    finally:
        model.module.train()
    return tokenizer.decode(tokens)


def _next_logits(model: FlatModel, pending: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    """Return the logits [vocabulary] after `pending` [1, n], and the cache that now holds it."""
    output = model.module(input_ids=pending, past_key_values=cache, use_cache=True)
    return output.logits[0, -1].float().cpu(), output.past_key_values


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
