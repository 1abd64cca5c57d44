"""The schema: what everybody must agree on before the first integer."""

import json
from typing import Any

import pytest

from shoal.gossip.anchor import MAGNITUDE_MAX
from shoal.gossip.errors import GossipError
from shoal.gossip.schema import TENSORS_MAX, ModelSchema, TensorSchema, choose_fraction_bits
from tests.gossip.builders import SCHEMA


def test_json_round_trip_keeps_the_digest() -> None:
    again = ModelSchema.from_json(json.loads(json.dumps(SCHEMA.to_json())))
    assert again == SCHEMA
    assert again.digest == SCHEMA.digest


def test_the_digest_is_the_one_it_always_was() -> None:
    assert SCHEMA.digest.hex() == GOLDEN_DIGEST


GOLDEN_DIGEST = "11c4af04aed74e0bb8883e1487c3b30e0e81b96aa779fb6950aa2a4ffc97275e"


def test_every_field_is_under_the_digest() -> None:
    first, second, *rest = SCHEMA.tensors
    variants = {
        SCHEMA.digest,
        ModelSchema((second, first, *rest)).digest,
        ModelSchema((first, second)).digest,
        ModelSchema((TensorSchema("renamed", first.shape, 28), second, *rest)).digest,
        ModelSchema((TensorSchema(first.name, (64, 66), 28), second, *rest)).digest,
        ModelSchema((TensorSchema(first.name, (64 * 66,), 28), second, *rest)).digest,
        ModelSchema((TensorSchema(first.name, first.shape, 24), second, *rest)).digest,
    }
    assert len(variants) == 7


def test_layout_and_scale_runs_describe_the_flat_vector() -> None:
    assert SCHEMA.layout.sizes == (4224, 64, 1, 300)
    runs = [(4224, 4288, 24), (0, 4224, 28), (4288, 4589, 28)]
    assert sorted(SCHEMA.scale_runs) == sorted(runs)


@pytest.mark.parametrize(
    ("max_abs", "bits"), [(0.0, 24), (0.5, 24), (3.999, 24), (4.0, 22), (63.9, 22)]
)
def test_a_scale_leaves_room_to_grow_and_resolves_what_a_step_changes(
    max_abs: float, bits: int
) -> None:
    assert choose_fraction_bits(max_abs) == bits
    assert MAGNITUDE_MAX / 2**bits >= 4 * max_abs
    assert 2.0**-bits < 1e-6


@pytest.mark.parametrize("max_abs", [64.0, 1e9, float("inf"), float("nan")])
def test_weights_that_no_scale_holds_are_refused(max_abs: float) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        choose_fraction_bits(max_abs)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "w", "shape": [2, 3], "fraction_bits": 28} | changes


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        [],
        "w",
        [1],
        [[]],
        [{}],
        [tensor(extra=1)],
        [tensor(name=1)],
        [tensor(name="")],
        [tensor(name="a" * 201)],
        [tensor(name="../w")],
        [tensor(name="w\n")],
        [tensor(shape="23")],
        [tensor(shape=[0])],
        [tensor(shape=[-1])],
        [tensor(shape=[True])],
        [tensor(shape=[2.0])],
        [tensor(shape=[1] * 9)],
        [tensor(shape=[2**40])],
        [tensor(shape=[2**20, 2**20])],
        [tensor(shape=[2**36] * 8)],
        [tensor(fraction_bits=31)],
        [tensor(fraction_bits=-1)],
        [tensor(fraction_bits=True)],
        [tensor(fraction_bits=None)],
        [tensor(), tensor()],
        [tensor(name=f"w{number}") for number in range(TENSORS_MAX + 1)],
    ],
)
def test_whatever_else_a_peer_sends_is_one_kind_of_error(content: object) -> None:
    with pytest.raises(GossipError) as caught:
        ModelSchema.from_json(content)
    assert caught.value.reason == "bad-schema"
