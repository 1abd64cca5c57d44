"""Trust: who goes with the others keeps all of it, who goes against them a tenth."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.codec import SparseDelta
from shoal.gossip import alignment
from shoal.gossip.alignment import FLOOR_PERMILLE, FULL_PERMILLE, measure_courses, next_trust
from shoal.gossip.gain import Contribution
from shoal.gossip.parameters import contribution_of
from tests.gossip.builders import SCHEMA, epoch, hashed_delta, header, member

HONEST = range(1, 8)
EPOCH = epoch(0, 9)


def contribution(who: int, sequence: int, delta: SparseDelta) -> Contribution:
    return contribution_of(
        header(member(who), sequence),
        delta,
        parameters=EPOCH,
        schema=SCHEMA,
        load=lambda: delta,
    )


def reversed_delta(delta: SparseDelta) -> SparseDelta:
    """The same places, every value with its sign turned."""
    return replace(delta, codes=3 - delta.codes, counts=delta.counts[:, ::-1])


def crowd(sequence: int = 1) -> list[Contribution]:
    """Seven who go the same way, each with something of its own besides."""
    return [
        part
        for who in HONEST
        for part in (
            contribution(who, 2 * sequence, hashed_delta(f"common {sequence}")),
            contribution(
                who, 2 * sequence + 1, hashed_delta(f"own {who} {sequence}", size=2.0**-12)
            ),
        )
    ]


def directions(parts: list[Contribution]) -> dict[bytes, np.ndarray]:
    """What each member's deltas add, float64 [P] of length 1 in the model's units."""
    scale = np.repeat(
        [2.0**-t.fraction_bits for t in SCHEMA.tensors], [t.size for t in SCHEMA.tensors]
    )
    sums = {part.member: np.zeros(SCHEMA.layout.total) for part in parts}
    for part in parts:
        delta = part.load()
        sums[part.member][delta.indices] += part.increments.reshape(-1)[delta.table_ids()]
    return {who: total * scale / np.linalg.norm(total * scale) for who, total in sums.items()}


def test_the_cosines_are_those_that_floating_point_would_find() -> None:
    parts = [*crowd(), contribution(9, 1, reversed_delta(hashed_delta("common 1")))]
    found = directions(parts)
    total = sum(found.values())
    for who, (cosine, places) in measure_courses(parts, SCHEMA).items():
        assert places == np.count_nonzero(found[who])
        expected = found[who] @ (total - found[who]) / np.linalg.norm(total - found[who])
        assert float(cosine) == pytest.approx(float(expected), abs=1e-4)


def test_an_honest_crowd_keeps_all_of_its_trust() -> None:
    assert next_trust({}, crowd(), SCHEMA) == {member(who): FULL_PERMILLE for who in HONEST}


@pytest.mark.parametrize("lie", [reversed_delta(hashed_delta("common 1")), hashed_delta("noise")])
def test_who_goes_against_the_others_or_nowhere_is_left_a_tenth(lie: SparseDelta) -> None:
    trust = next_trust({}, [*crowd(), contribution(9, 1, lie)], SCHEMA)
    assert trust.pop(member(9)) <= FLOOR_PERMILLE + 50
    assert set(trust.values()) == {FULL_PERMILLE}


def test_trust_is_lost_at_once_and_comes_back_by_quarters() -> None:
    liar = contribution(9, 1, reversed_delta(hashed_delta("common 1")))
    trust = next_trust({}, [*crowd(), liar], SCHEMA)
    told = []
    for sequence in range(2, 7):
        repenting = contribution(9, sequence, hashed_delta(f"common {sequence}"))
        trust = next_trust(trust, [*crowd(sequence), repenting], SCHEMA)
        told.append(trust[member(9)])
    assert told == [350, 600, 850, FULL_PERMILLE, FULL_PERMILLE]


def test_who_said_nothing_keeps_what_it_had() -> None:
    assert next_trust({member(9): 300}, crowd(), SCHEMA)[member(9)] == 300


def test_three_alone_cannot_tell_who_of_them_lies() -> None:
    common = hashed_delta("common")
    parts = [
        contribution(1, 1, common),
        contribution(2, 1, common),
        contribution(3, 1, reversed_delta(common)),
    ]
    assert next_trust({}, parts, SCHEMA) == {}


def test_a_mesh_that_agrees_on_nothing_accuses_nobody() -> None:
    forth = hashed_delta("forth")
    parts = [
        contribution(who, 1, forth if who % 2 else reversed_delta(forth)) for who in range(1, 9)
    ]
    assert next_trust({}, parts, SCHEMA) == {}


def test_agreement_that_may_be_chance_accuses_nobody() -> None:
    """Nine who say noise agree a little, some less than others."""
    parts = [contribution(who, 1, hashed_delta(f"noise {who}")) for who in range(1, 10)]
    cosines = [float(course.cosine) for course in measure_courses(parts, SCHEMA).values()]
    assert min(cosines) < sorted(cosines)[4] / 2
    assert next_trust({}, parts, SCHEMA) == {}


def test_the_order_of_the_deltas_does_not_matter() -> None:
    parts = [*crowd(), contribution(9, 1, hashed_delta("noise"))]
    rng = random.Random(5)
    assert next_trust({}, rng.sample(parts, len(parts)), SCHEMA) == next_trust({}, parts, SCHEMA)


def test_who_shouts_is_not_heard_above_the_others() -> None:
    """Two that say the opposite ten times as loud would turn the sum around."""
    loud = reversed_delta(hashed_delta("common 1", size=10 * 2.0**-10))
    trust = next_trust({}, [*crowd(), contribution(8, 1, loud), contribution(9, 1, loud)], SCHEMA)
    assert [trust[member(who)] for who in (8, 9)] == [FLOOR_PERMILLE, FLOOR_PERMILLE]
    assert {trust[member(who)] for who in HONEST} == {FULL_PERMILLE}


@settings(deadline=None)
@given(bits=st.lists(st.integers(0, 31), min_size=4, max_size=4), seed=st.integers(0, 1000))
def test_any_increments_have_a_course(bits: list[int], seed: int) -> None:
    """Also those at the ends of int32, of nothing, and of one value."""
    rng = np.random.default_rng(seed)
    parts = [
        replace(
            contribution(who, 1, hashed_delta(f"{seed} {who}", kept_per_chunk=1)),
            increments=rng.integers(-(2**bit), 2**bit, (len(SCHEMA.tensors), 4)).astype(np.int32),
        )
        for who, bit in enumerate(bits, 1)
    ]
    for course in measure_courses(parts, SCHEMA).values():
        assert -1 <= course.cosine <= 1
        assert course.places or course.cosine == 0


def test_what_does_not_fit_into_memory_is_worked_out_again_to_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = [*crowd(), contribution(9, 1, reversed_delta(hashed_delta("common 1")))]
    held = measure_courses(parts, SCHEMA)
    monkeypatch.setattr(alignment, "HELD_BYTES_MAX", 0)
    assert measure_courses(parts, SCHEMA) == held
