"""In a closed round whoever pulls against where the mesh is going loses its weight."""

import hashlib
import random

import numpy as np
import torch

from shoal.compression.codec import SparseDelta
from shoal.compression.select import select
from shoal.gossip.trust import FLOOR, Heading, Voice, close_round
from tests.gossip.builders import SCHEMA, epoch, hashed_weights, member

EPOCH = epoch(0, 5)


def saying(vector: torch.Tensor) -> SparseDelta:
    return select(vector, SCHEMA.layout, 512)


def resting() -> Heading:
    return Heading(np.zeros(SCHEMA.layout.total))


def played(rounds: int, liar: float) -> tuple[list[float], Heading]:
    """Four honest members go one way, each with noise of its own; the fifth times `liar`."""
    heading = resting()
    way = hashed_weights("the way")
    weights: list[float] = []
    for number in range(rounds):
        voices = []
        for who in range(1, 6):
            vector = way + hashed_weights(f"noise {who} {number}")
            if who == 5:
                vector = vector * liar
            voices.append(Voice(member(who), saying(vector * 0.01), EPOCH, 8))
        worths, heading = close_round(voices, heading)
        weights = [worth.weight * 5 for worth in worths]
    return weights, heading


def test_at_rest_everybody_counts_the_same() -> None:
    weights, _ = played(1, liar=1.0)
    assert np.allclose(weights, 1.0)


def test_a_liar_is_left_with_the_floor_and_the_honest_keep_theirs() -> None:
    weights, _ = played(4, liar=-1.0)
    assert np.isclose(weights[4], FLOOR)
    assert min(weights[:4]) > 0.8
    weights, _ = played(4, liar=1.0)
    assert min(weights) > 0.8


def test_shouting_gives_no_more_than_the_median() -> None:
    vectors = [
        hashed_weights(f"{who}") * (1000.0 if who == 5 else 1.0) * 0.01 for who in range(1, 6)
    ]
    voices = [Voice(member(who), saying(v), EPOCH, 8) for who, v in enumerate(vectors, start=1)]
    worths, _ = close_round(voices, resting())
    loudest = np.array(
        [np.linalg.norm(v.delta.values(w.scales)) for v, w in zip(voices, worths, strict=True)]
    )
    assert loudest[4] <= 1.1 * np.median(loudest[:4])


def test_the_bits_are_these_on_every_machine() -> None:
    _, heading = played(3, liar=-1.0)
    assert heading.momentum.dtype == np.float64
    again = played(3, liar=-1.0)[1]
    assert again.momentum.tobytes() == heading.momentum.tobytes()
    assert hashlib.sha256(heading.momentum.astype("<f8").tobytes()).hexdigest() == GOLDEN


GOLDEN = "7eeb6600617397603c36a79e75c0b74ec24cfa645c1eb8c2f83efdd97214798e"


def test_the_heading_given_is_not_changed() -> None:
    heading = resting()
    rng = random.Random(0)
    voices = [Voice(member(1), saying(hashed_weights(str(rng.random()))), EPOCH, 8)]
    _, after = close_round(voices, heading)
    assert not heading.momentum.any()
    assert after.momentum.any()
