"""The gain is an exact ratio of norms."""

import random
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.codec import SparseDelta
from shoal.gossip.gain import Contribution, measure_gain, squares_per_tensor
from shoal.gossip.parameters import contribution_of, message_norms
from tests.gossip.builders import SCHEMA, epoch, hashed_delta, header, member


def contribution(who: int, sequence: int, delta: SparseDelta) -> Contribution:
    return contribution_of(
        header(member(who), sequence),
        delta,
        parameters=epoch(0, 4),
        schema=SCHEMA,
        load=lambda: delta,
    )


def shifted(delta: SparseDelta, by: int) -> SparseDelta:
    """The same values at other places, so that the two do not overlap."""
    indices = np.sort((delta.indices + by) % SCHEMA.layout.total)
    return SparseDelta(
        delta.layout, delta.kept_per_chunk, indices, delta.codes, delta.centroids, delta.counts
    )


def test_equal_deltas_need_no_gain() -> None:
    delta = hashed_delta("same")
    parts = [contribution(who, 1, delta) for who in (1, 2, 3, 4)]
    assert measure_gain(parts, SCHEMA) == pytest.approx(1.0)


def test_deltas_that_do_not_overlap_need_the_root_of_their_number() -> None:
    delta = hashed_delta("apart", kept_per_chunk=1)
    others = [shifted(delta, by) for by in (0, 1, 2, 3)]
    # Shifting moves values across tensor borders; keep to one scale and one position each.
    assert len({int(i) for d in others for i in d.indices}) == 4 * delta.indices.size
    table = np.full((len(SCHEMA.tensors), 4), 1000, dtype=np.int32)
    table[1] = 0
    parts = [
        Contribution(member(who), 1, 8, 1, 1, message_norms(d), table, lambda d=d: d)  # type: ignore[misc]
        for who, d in enumerate(others, start=1)
    ]
    assert measure_gain(parts, SCHEMA) == pytest.approx(sqrt(4), rel=1e-6)


def test_the_gain_is_the_ratio_that_floating_point_would_find() -> None:
    rng = random.Random(7)
    parts = [
        contribution(who, sequence, hashed_delta(f"delta {who} {sequence}"))
        for who in (1, 2, 3, 4)
        for sequence in rng.sample(range(1, 50), 5)
    ]
    scale = np.repeat(
        [2.0**-t.fraction_bits for t in SCHEMA.tensors], [t.size for t in SCHEMA.tensors]
    )
    ratios = []
    for rank in range(5):
        total, separate = np.zeros(SCHEMA.layout.total), 0.0
        for who in (1, 2, 3, 4):
            own = sorted((p for p in parts if p.member == member(who)), key=lambda p: p.sequence)
            delta, part = own[rank].load(), np.zeros(SCHEMA.layout.total)
            part[delta.indices] = own[rank].increments.reshape(-1)[delta.table_ids()]
            part *= scale
            total += np.abs(part)
            separate += float(np.linalg.norm(part))
        ratios.append(separate / float(np.linalg.norm(total)))
    gain = measure_gain(parts, SCHEMA)
    assert gain is not None
    assert float(gain) == pytest.approx(float(np.median(ratios)), rel=1e-7)
    assert measure_gain(rng.sample(parts, len(parts)), SCHEMA) == gain


def test_members_that_made_more_deltas_than_the_others_stand_alone_at_the_end() -> None:
    pairs = [contribution(who, 1, hashed_delta(f"{who}")) for who in (1, 2)]
    alone = [contribution(1, 2, hashed_delta("alone"))]
    assert measure_gain(pairs + alone, SCHEMA) == measure_gain(pairs, SCHEMA)
    assert measure_gain(alone, SCHEMA) is None
    assert measure_gain([], SCHEMA) is None


def test_deltas_that_contradict_each_other_are_no_reason_to_go_further() -> None:
    delta = hashed_delta("there")
    forth = contribution(1, 1, delta)
    back = Contribution(member(2), 1, 8, 1, 1, forth.norms, -forth.increments, lambda: delta)
    assert measure_gain([forth, back], SCHEMA) == pytest.approx(1.0)


def test_a_group_that_moves_nothing_says_nothing() -> None:
    delta = hashed_delta("nowhere")
    still = [
        Contribution(
            who,
            1,
            8,
            1,
            1,
            message_norms(delta),
            np.zeros((len(SCHEMA.tensors), 4), np.int32),
            lambda: delta,
        )
        for who in (member(1), member(2))
    ]
    assert measure_gain(still, SCHEMA) is None


def test_only_one_decoded_delta_is_held_and_each_is_loaded_once() -> None:
    loads: list[tuple[bytes, int]] = []

    def counted(who: int, sequence: int) -> Contribution:
        delta = hashed_delta(f"{who} {sequence}")

        def load() -> SparseDelta:
            loads.append((member(who), sequence))
            return delta

        plain = contribution(who, sequence, delta)
        return Contribution(plain.member, sequence, 8, 1, 1, plain.norms, plain.increments, load)

    measure_gain([counted(1, 1), counted(2, 1), counted(1, 2), counted(2, 9)], SCHEMA)
    assert sorted(loads) == [(member(1), 1), (member(1), 2), (member(2), 1), (member(2), 9)]


@given(
    st.lists(
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=30), min_size=1, max_size=6
    ),
    st.integers(0, 31),
)
@settings(max_examples=200, deadline=None)
def test_squares_are_exact_for_small_and_for_huge_values(runs: list[list[int]], down: int) -> None:
    runs = [[value >> down for value in run] for run in runs]
    values = np.array([value for run in runs for value in run], dtype=np.int32)
    starts = np.cumsum([0, *(len(run) for run in runs[:-1])])
    assert squares_per_tensor(values, starts) == [sum(v * v for v in run) for run in runs]
