"""Deltas of unequal steps: what each counts for follows from its header and its epoch alone."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.residual import Residual
from shoal.gossip.delta import DeltaHeader
from shoal.gossip.gain import Contribution
from shoal.gossip.parameters import (
    EpochParameters,
    clip_scales,
    contribution_of,
    message_norms,
    next_parameters,
)
from shoal.gossip.strategies.delta_log import DeltaLog, say
from shoal.gossip.strategies.strategy import Work
from tests.gossip.builders import (
    SCHEMA,
    epoch,
    hashed_anchor,
    hashed_delta,
    hashed_weights,
    header,
    member,
    members,
)

USUAL = 8
NORMALISED = replace(epoch(0, 4), steps=USUAL)


def made(who: int, sequence: int, steps: int, tokens: int = 100) -> DeltaHeader:
    return replace(header(member(who), sequence, tokens=tokens), steps=steps)


def contribution(
    head: DeltaHeader, parameters: EpochParameters = NORMALISED, size: float = 2.0**-10
) -> Contribution:
    delta = hashed_delta(f"{head.sender.hex()} {head.sequence}", size=size)
    return contribution_of(head, delta, parameters=parameters, schema=SCHEMA, load=lambda: delta)


def after(parts: list[Contribution], *, normalise_steps: bool = True) -> EpochParameters:
    return next_parameters(NORMALISED, parts, members(4), SCHEMA, normalise_steps=normalise_steps)


@given(
    steps=st.lists(st.integers(1, 2**32 - 1) | st.integers(1, 40), min_size=8, max_size=8),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=25)
def test_no_order_matters_whatever_the_steps_are(steps: list[int], seed: int) -> None:
    """Anchor and next parameters, bit for bit, of the same deltas in two orders."""
    parts = [
        contribution(made(1 + place % 4, 1 + place // 4, each)) for place, each in enumerate(steps)
    ]
    ends = []
    for order in (parts, random.Random(seed).sample(parts, len(parts))):
        anchor = hashed_anchor("mesh")
        for part in order:
            anchor.apply(part.load(), part.increments)
        ends.append((anchor.root(), after(order).to_bytes()))
    assert ends[0] == ends[1]
    assert EpochParameters.from_bytes(ends[0][1]).steps == after(parts).steps > 0


@pytest.mark.parametrize(("steps", "factor"), [(8, 1.0), (32, 0.25), (4, 2.0), (2**31, 0.25)])
def test_a_delta_moves_the_anchor_as_one_of_the_usual_steps_would(
    steps: int, factor: float
) -> None:
    delta = hashed_delta("moves")
    tables = [
        each.increments(delta, sender=member(2), steps=steps, schema=SCHEMA).astype(np.int64)
        for each in (NORMALISED, epoch(0, 4))
    ]
    assert np.abs(tables[0] - tables[1] * factor).max() <= 1
    assert (factor == 1.0) == bool((tables[0] == tables[1]).all())


def test_who_claims_few_steps_is_no_louder_than_the_clip() -> None:
    honest, liar = hashed_delta("who", size=2.0**-10), hashed_delta("who", size=2.0**-8)
    parameters = replace(NORMALISED, clip=tuple(message_norms(honest).tolist()))
    moved = parameters.increments(honest, sender=member(1), steps=USUAL, schema=SCHEMA)
    claimed = parameters.increments(liar, sender=member(1), steps=1, schema=SCHEMA)
    assert np.abs(claimed.astype(np.int64) - moved).max() <= 1


def test_long_rounds_are_not_clipped_for_being_long() -> None:
    """Four times the steps are about four times the way; the radius is for the usual steps."""
    delta = hashed_delta("long", size=2.0**-8)
    radius = tuple((message_norms(delta) / 3).tolist())
    assert clip_scales(replace(NORMALISED, clip=radius), delta, 32).tolist() == [1.0] * 4
    assert (clip_scales(replace(epoch(0, 4), clip=radius), delta, 32) < 0.34).all()
    radius = after([contribution(made(who, 1, 32), size=2.0**-8) for who in (1, 2, 3)]).clip
    plain = after([contribution(made(who, 1, 8), size=2.0**-10) for who in (1, 2, 3)]).clip
    assert radius == pytest.approx(plain)


def test_speed_is_divided_out_once_by_the_weights_or_by_the_steps() -> None:
    """Four times the steps in as many rounds: a quarter for each, by one rule or the other."""
    heads = [made(who, 1, 32 if who == 1 else 8, 400 if who == 1 else 100) for who in (1, 2, 3, 4)]
    by_weight = after([contribution(head, epoch(0, 4)) for head in heads], normalise_steps=False)
    by_steps = after([contribution(head) for head in heads])
    assert by_weight.steps == 0 and by_steps.steps == 10
    fast, plain = by_weight.weights[0][1], by_weight.weights[1][1]
    assert fast == pytest.approx(plain / 4)
    assert {weight for _, weight in by_steps.weights} == {0.25}
    assert by_weight.tokens == by_steps.tokens == 700, "what was learned from is what it was"


def test_more_rounds_of_the_usual_steps_are_still_divided_out() -> None:
    heads = [made(1, sequence, 8) for sequence in (1, 2, 3, 4)]
    heads += [made(who, 1, 8) for who in (2, 3, 4)]
    weights = after([contribution(head) for head in heads]).weights
    assert weights[0][1] == pytest.approx(weights[1][1] / 4)


def test_the_rule_begins_and_ends_with_an_epoch() -> None:
    parts = [contribution(made(who, 1, 5 * who), epoch(0, 4)) for who in (1, 2, 3)]
    began = next_parameters(epoch(0, 4), parts, members(4), SCHEMA, normalise_steps=True)
    assert began.steps == 8
    nobody = next_parameters(began, [], members(4), SCHEMA, normalise_steps=True)
    assert nobody.steps == 8, "who said nothing changed nothing"
    assert next_parameters(began, [], members(4), SCHEMA).steps == 0


@pytest.mark.parametrize("steps", [2, 8, 32])
def test_the_sender_takes_out_of_its_residual_what_was_heard_and_the_weighting_is_for_good(
    steps: int,
) -> None:
    """Otherwise what counts for less now would be said again, until it counted for as much."""
    unsaid = hashed_weights("residual") * 0.01
    residual = Residual(unsaid.clone(), 1.0)
    clip = tuple((message_norms(hashed_delta("clip")) / 4).tolist())
    parameters = replace(NORMALISED, clip=clip)
    kept, _ = say(residual, parameters, SCHEMA, steps)
    taken = (unsaid - residual.error).double().numpy()[kept.indices]
    scales = clip_scales(parameters, kept, steps)
    assert np.allclose(taken, kept.values(scales), atol=1e-7)
    table = parameters.increments(kept, sender=member(1), steps=steps, schema=SCHEMA)
    counted = parameters.weight_of(member(1)) * USUAL / steps
    scale = np.repeat([2.0**t.fraction_bits for t in SCHEMA.tensors], kept.counts.sum(axis=1))
    heard = table.reshape(-1)[kept.table_ids()] / scale
    assert np.allclose(heard, counted * kept.values(scales), atol=2.0**-24)


def test_in_closed_rounds_too() -> None:
    """What the round's own clip took off goes back; what the steps took off does not."""
    log = DeltaLog(SCHEMA, NORMALISED, closed=True, normalise_steps=True, start_share=0.0)
    genesis = hashed_weights("genesis") * 0.1
    moves = {}
    for steps in (8, 32):
        state = log.begin(member(1), genesis)
        began = log.start(state)
        state, said = log.speak(state, Work(began, began + 1e-3, steps, 100))
        assert said is not None
        state = log.listen(state, [said])
        moves[steps] = state.live.anchor.to_weights() - began
    assert torch.allclose(moves[32], moves[8] / 4, atol=1e-7)
