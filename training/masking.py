"""Masked language modelling: which tokens of a window are asked for, and what stands there instead.

15 % of a window's tokens are asked for. Of these 80 % are hidden behind the mask token, 10 % are
replaced by any token and 10 % stay, so that a model cannot rely on what it is shown. At least one
is asked for, and their number follows from the window's length alone.

Source: Devlin et al., BERT (2019), 3.1 and A.1. transformers' collator is not used: it draws from
one generator from batch to batch, so what it hides depends on how the windows are batched.
"""

import numpy as np
import torch

ASKED_SHARE = 0.15
HIDDEN_SHARE = 0.8
REPLACED_SHARE = 0.1
# The target of a token that is not asked for.
NOT_ASKED = -100


def mask(
    tokens: torch.Tensor, masks: np.random.Generator, *, mask_token: int, vocabulary_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the model is shown and what it is asked for, both int64 [n, T].

    tokens: int64 [n, T]. masks: what it draws for one window after the other, so that they are
    masked alike however they are batched. Where nothing is asked for, the second is NOT_ASKED.
    """
    windows, length = tokens.shape
    place, kind, other = torch.from_numpy(masks.random((windows, 3, length))).unbind(1)
    count = max(1, round(ASKED_SHARE * length))
    asked = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, place.topk(count).indices, True)
    hidden = asked & (kind < HIDDEN_SHARE)
    replaced = asked & (kind >= 1 - REPLACED_SHARE)
    shown = tokens.masked_fill(hidden, mask_token)
    shown = torch.where(replaced, (other * vocabulary_size).long(), shown)
    return shown, tokens.masked_fill(~asked, NOT_ASKED)
