"""What an epoch prescribes is the same bytes for everybody."""

import hashlib
import math
import random
from dataclasses import replace
from statistics import median
from struct import pack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.codec import encode
from shoal.compression.frame import parse_frame, tensor_norms
from shoal.gossip.errors import DeltaError, GossipError
from shoal.gossip.gain import Contribution
from shoal.gossip.parameters import (
    GAIN,
    MEMBERS_MAX,
    PARAMETERS_BYTES_MAX,
    EpochParameters,
    clip_scales,
    contribution_of,
    genesis_parameters,
    message_norms,
    next_parameters,
)
from shoal.gossip.schema import TENSORS_MAX
from tests.gossip.builders import SCHEMA, epoch, hashed_delta, header, member, members


def contributions(count: int, rounds: int, previous: EpochParameters) -> list[Contribution]:
    found = []
    for who in range(1, count + 1):
        for sequence in range(1, rounds + 1):
            delta = hashed_delta(f"{who} {sequence}", size=2.0**-10 * who)
            head = header(member(who), sequence, height=previous.height, tokens=1000 + 37 * who)
            found.append(
                contribution_of(
                    head,
                    delta,
                    parameters=previous,
                    schema=SCHEMA,
                    load=lambda delta=delta: delta,  # type: ignore[misc]
                )
            )
    return found


MEMBERS = [(member(1), 5000, 1000), (member(2), 7000, 500), (member(3), 900, 750),
           (member(4), 123456, 1000)]  # fmt: skip


def test_the_next_epoch_is_the_one_it_always_was() -> None:
    """Any platform on which this fails would break every mesh that it joins."""
    first = next_parameters(epoch(0, 4), contributions(4, 3, epoch(0, 4)), MEMBERS, SCHEMA)
    second = next_parameters(first, contributions(4, 5, first), MEMBERS, SCHEMA, clip_factor=1.5)
    assert hashlib.sha256(first.to_bytes()).hexdigest() == GOLDEN_FIRST
    assert hashlib.sha256(second.to_bytes()).hexdigest() == GOLDEN_SECOND


GOLDEN_FIRST = "62ef0c9dfc9110b102025db77d02b8cfff85f2ef4ecb87a3b1fa7bd93f810007"
GOLDEN_SECOND = "6aca520572af6fdc793df83224d6c1eb9e3f8c50199c2836673dd1ce5713f8cf"


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_no_order_matters(seed: int) -> None:
    rng = random.Random(seed)
    parts = contributions(4, 2, epoch(0, 4))
    straight = next_parameters(epoch(0, 4), parts, MEMBERS, SCHEMA)
    shuffled = next_parameters(
        epoch(0, 4), rng.sample(parts, len(parts)), rng.sample(MEMBERS, 4), SCHEMA
    )
    assert shuffled.to_bytes() == straight.to_bytes()


def test_deltas_that_say_the_same_and_ones_that_contradict_have_the_least_gain() -> None:
    previous = epoch(0, 4, alpha=1.7)
    parts = contributions(2, 1, previous)
    table, same = parts[0].increments, parts[0].load()
    for other in (table, -table):
        second = Contribution(member(2), 1, 8, 100, 100, parts[0].norms, other, lambda: same)
        after = next_parameters(previous, [parts[0], second], members(2), SCHEMA)
        assert after.alpha == pytest.approx(GAIN, rel=1e-9)


def test_sparse_deltas_have_more_and_never_more_than_the_root_of_n() -> None:
    previous = epoch(0, 4)
    for n in (2, 3, 4):
        after = next_parameters(previous, contributions(n, 3, previous), members(n), SCHEMA)
        assert GAIN < after.alpha <= GAIN * math.sqrt(n)


def test_the_last_member_of_a_mesh_counts_once_whatever_the_gain_was() -> None:
    previous = epoch(4, 4, alpha=3.0)
    for deltas in (0, 3):
        one = contributions(1, deltas, previous)
        assert next_parameters(previous, one, members(1), SCHEMA).alpha == 1.0


def test_without_trust_everybody_counts_by_weight_alone_and_once_it_is_back_begins_anew() -> None:
    previous = replace(epoch(0, 4), trust=(100, 1000, 1000, 700))
    off = next_parameters(previous, [], members(4), SCHEMA, aligned=False)
    assert off.trust == (1000,) * 4
    assert {weight for _, weight in off.weights} == {0.25}
    on = next_parameters(previous, [], members(4), SCHEMA)
    assert on.trust == previous.trust and on.weights[0][1] < 0.05
    assert next_parameters(off, [], members(4), SCHEMA).trust == (1000,) * 4


def test_without_a_pair_the_gain_stays() -> None:
    previous = epoch(4, 4, alpha=1.7)
    assert next_parameters(previous, [], members(4), SCHEMA).alpha == 1.7
    one = contributions(1, 3, previous)
    assert next_parameters(previous, one, members(4), SCHEMA).alpha == 1.7


def test_height_tokens_and_density_go_on() -> None:
    previous = epoch(4, 4)
    after = next_parameters(previous, contributions(4, 2, previous), members(4), SCHEMA)
    assert after.height == 5
    assert after.tokens == previous.tokens + 2 * sum(1000 + 37 * who for who in (1, 2, 3, 4))
    assert after.kept_per_chunk == previous.kept_per_chunk


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_the_clip_is_twice_the_median_norm(count: int) -> None:
    parts = contributions(count, 1, epoch(0, 8))
    after = next_parameters(epoch(0, 8), parts, members(8), SCHEMA)
    for tensor in range(len(SCHEMA.tensors)):
        norms = [float(part.norms[tensor]) for part in parts]
        assert after.clip[tensor] == 2.0 * median(norms)


def test_messages_that_leave_a_tensor_alone_do_not_shut_it() -> None:
    previous = next_parameters(epoch(0, 8), contributions(3, 1, epoch(0, 8)), members(8), SCHEMA)
    parts = contributions(4, 1, previous)
    for part in parts:
        part.norms[0] = 0.0
    for part in parts[:3]:
        part.norms[1] = 0.0
    after = next_parameters(previous, parts, members(8), SCHEMA)
    assert after.clip[0] == previous.clip[0]
    assert after.clip[1] == 2.0 * parts[3].norms[1]


def test_norms_come_from_the_header_and_are_those_of_the_values() -> None:
    delta = hashed_delta("norms")
    frame = parse_frame(encode(delta), SCHEMA.layout)
    declared = message_norms(delta)
    assert declared.tolist() == tensor_norms(frame) == message_norms(frame).tolist()
    ends = np.cumsum(delta.counts.sum(axis=1))[:-1]
    for norm, values in zip(declared, np.split(delta.values(), ends), strict=True):
        assert norm == pytest.approx(float(np.linalg.norm(values.astype(np.float64))), rel=1e-12)


def test_a_message_within_the_radius_is_left_alone_and_a_longer_one_is_shortened_to_it() -> None:
    delta = hashed_delta("clip")
    norms = message_norms(delta)
    clip = (math.inf, float(norms[1]), float(norms[2]) / 4, float(norms[3]) * 2)
    start = epoch(0, 2)
    parameters = EpochParameters(0, 1.0, start.weights, clip, 256, 0, start.trust)
    scales = clip_scales(parameters, delta, 8)
    assert scales.tolist() == [1.0, 1.0, 0.25, 1.0]
    zero = hashed_delta("clip")
    zero.centroids[:] = 0
    assert clip_scales(parameters, zero, 8).tolist() == [1.0] * 4


def test_before_there_is_a_median_a_liar_counts_for_no_more_than_an_honest_round_can_be() -> None:
    first = genesis_parameters(
        members(4), SCHEMA, kept_per_chunk=256, alpha=1.0, largest_value=1e-3
    )
    honest, liar = (hashed_delta("first", size=size) for size in (4e-4, 1.0))
    assert clip_scales(first, honest, 8).tolist() == [1.0] * len(SCHEMA.tensors)
    for norm, scale in zip(message_norms(liar), clip_scales(first, liar, 8), strict=True):
        assert scale < 1e-2 and norm * scale <= 1e-3 * math.sqrt(SCHEMA.layout.total)


def test_increments_carry_gain_weight_and_clip_of_the_epoch() -> None:
    delta = hashed_delta("all of it")
    start = epoch(0, 4, alpha=1.5)
    half = tuple((message_norms(delta) / 2).tolist())
    parameters = EpochParameters(0, 1.5, start.weights, half, 256, 0, start.trust)
    table = parameters.increments(delta, sender=member(2), steps=8, schema=SCHEMA)
    scale = 2.0 ** np.array([[t.fraction_bits] for t in SCHEMA.tensors])
    expected = 1.5 * 0.25 * 0.5 * delta.centroids.astype(np.float64) * scale
    assert np.abs(table - expected).max() <= 0.500001
    with pytest.raises(DeltaError) as caught:
        parameters.increments(delta, sender=member(9), steps=8, schema=SCHEMA)
    assert caught.value.reason == "not-a-member"


def test_bytes_round_trip() -> None:
    for parameters in (epoch(0, 4), epoch(7, 16, alpha=3.3)):
        assert EpochParameters.from_bytes(parameters.to_bytes()) == parameters


def test_the_largest_parameters_fit_a_checkpoint_record() -> None:
    start = epoch(0, 1)
    ids = sorted(hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(MEMBERS_MAX))
    weights = tuple((who, 1 / MEMBERS_MAX) for who in ids)
    trust = (1000,) * MEMBERS_MAX
    largest = EpochParameters(1, 1.0, weights, (1.0,) * TENSORS_MAX, 4096, 0, trust)
    assert len(largest.to_bytes()) == PARAMETERS_BYTES_MAX <= 64 * 1024
    assert EpochParameters.from_bytes(largest.to_bytes()) == largest
    with pytest.raises(GossipError):
        EpochParameters(1, 1.0, start.weights, (1.0,) * (TENSORS_MAX + 1), 4096, 0, (1000,))


GOOD = epoch(3, 4).to_bytes()
NAN, INFINITY = pack(">d", math.nan), pack(">d", math.inf)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD + b"\0",
        GOOD[:16] + NAN + GOOD[24:],
        GOOD[:16] + INFINITY + GOOD[24:],
        GOOD[:16] + pack(">d", 0.0) + GOOD[24:],
        GOOD[:66] + NAN + GOOD[74:],
        GOOD[:66] + pack(">d", -0.5) + GOOD[74:],
        GOOD[:66] + pack(">d", 1.5) + GOOD[74:],
        GOOD[:-8] + NAN,
        GOOD[:-8] + pack(">d", 0.0),
        GOOD[:34] + b"\xff" * 32 + GOOD[66:],
        GOOD[:24] + b"\0\0" + GOOD[26:],
        GOOD[:24] + b"\xff\xff" + GOOD[26:],
        GOOD[:26] + b"\xff\xff\xff\xff" + GOOD[30:],
        GOOD[:26] + b"\0\0" + GOOD[28:],
        b"\xff" * 8 + GOOD[8:],
        b"\xff" * 70000,
    ],
)
def test_damaged_parameters_are_refused(data: bytes) -> None:
    with pytest.raises(GossipError) as caught:
        EpochParameters.from_bytes(data)
    assert caught.value.reason == "bad-parameters"


@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
@settings(deadline=None)
def test_whatever_is_accepted_has_one_encoding(position: int, value: int) -> None:
    data = GOOD[:position] + bytes([value]) + GOOD[position + 1 :]
    try:
        parameters = EpochParameters.from_bytes(data)
    except GossipError:
        return
    assert parameters.to_bytes() == data
