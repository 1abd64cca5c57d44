"""What a masked model is asked for, and that chance plays no part that cannot be repeated."""

import numpy as np
import pytest
import torch

from shoal.training.masking import NOT_ASKED, mask

MASK, WORDS = 255, 200


def masked(tokens: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return mask(tokens, np.random.default_rng(seed), mask_token=MASK, vocabulary_size=WORDS)


def test_fifteen_per_cent_are_asked_for_and_the_rest_is_shown_as_it_is() -> None:
    tokens = torch.arange(8 * 100).view(8, 100) % WORDS
    shown, targets = masked(tokens)
    asked = targets != NOT_ASKED
    assert asked.sum(dim=1).tolist() == [15] * 8
    assert torch.equal(targets[asked], tokens[asked])
    assert torch.equal(shown[~asked], tokens[~asked])


def test_of_those_eight_in_ten_are_hidden_one_is_replaced_and_one_stays() -> None:
    tokens = torch.full((400, 100), 7)
    shown, targets = masked(tokens)
    asked = shown[targets != NOT_ASKED]
    hidden, stays = (asked == MASK).float().mean(), (asked == 7).float().mean()
    assert float(hidden) == pytest.approx(0.8, abs=0.02)
    assert float(stays) == pytest.approx(0.1, abs=0.02)
    others = asked[(asked != MASK) & (asked != 7)]
    assert int(others.min()) < 5 and WORDS - 5 < int(others.max()) < WORDS, "any word may come"


def test_the_same_windows_are_masked_alike_however_they_are_batched() -> None:
    tokens = torch.arange(12 * 20).view(12, 20) % WORDS
    shown, targets = masked(tokens)
    masks = np.random.default_rng(0)
    parts = [
        mask(part, masks, mask_token=MASK, vocabulary_size=WORDS) for part in torch.split(tokens, 5)
    ]
    assert torch.equal(torch.cat([part for part, _ in parts]), shown)
    assert torch.equal(torch.cat([part for _, part in parts]), targets)
    assert not torch.equal(masked(tokens, seed=1)[1], targets)


def test_of_the_shortest_window_one_token_is_asked_for() -> None:
    _, targets = masked(torch.tensor([[3, 4]]))
    assert int((targets != NOT_ASKED).sum()) == 1
