"""Error feedback: nothing is lost, only late."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.codec import decode, encode
from shoal.compression.layout import Layout
from shoal.compression.residual import Residual
from shoal.compression.select import select


def random_vector(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6000), min_size=1, max_size=3).map(tuple),
    st.integers(1, 400),
    st.integers(0, 1000),
    st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
)
def test_what_receivers_decode_and_what_stays_add_up(
    sizes: tuple[int, ...], per_chunk: int, seed: int, all_scales: list[float]
) -> None:
    layout = Layout(sizes)
    scales = np.array(all_scales[: len(sizes)])
    before = random_vector(layout.total, seed)
    residual = Residual(before.clone(), beta=0.95)
    sent = select(residual.error, layout, per_chunk)
    residual.subtract(sent, scales)

    received = decode(encode(sent), layout)
    added = np.zeros(layout.total, dtype=np.float32)
    for index, code, tensor in zip(
        received.indices, received.codes, received.tensor_ids(), strict=True
    ):
        added[index] = np.float32(float(received.centroids[tensor, code]) * scales[tensor])
    # Float32 subtraction of exactly the received numbers, and no other coordinate is touched.
    assert np.array_equal(residual.error.numpy(), before.numpy() - added)
    # In exact arithmetic nothing is lost beyond the one rounding of that subtraction.
    lost = residual.error.double().numpy() + added - before.double().numpy()
    assert (np.abs(lost) <= np.spacing(np.abs(residual.error.numpy())) / 2).all()


def test_absorbing_decays_what_was_there() -> None:
    residual = Residual(torch.tensor([1.0, -2.0]), beta=0.5)
    residual.absorb(torch.tensor([10.0, 20.0]))
    assert residual.error.tolist() == [10.5, 19.0]


def test_an_expired_delta_is_put_back() -> None:
    layout = Layout((5000, 7))
    before = random_vector(layout.total, 3)
    scales = np.array([0.5, 1.0])
    residual = Residual(before.clone(), beta=1.0)
    sent = select(residual.error, layout, 64)
    residual.subtract(sent, scales)
    assert not torch.equal(residual.error, before)
    residual.restore(sent, scales)
    torch.testing.assert_close(residual.error, before, rtol=0, atol=1e-6)


def test_every_coordinate_gets_its_turn() -> None:
    """With beta 1 and enough rounds, the sum of what was sent approaches what was to be said."""
    layout = Layout((4096,))
    wanted = random_vector(4096, 4)
    residual = Residual(wanted.clone(), beta=1.0)
    heard = torch.zeros(4096)
    scales = np.ones(1)
    for _ in range(60):
        sent = select(residual.error, layout, 256)
        residual.subtract(sent, scales)
        heard.index_add_(0, torch.from_numpy(sent.indices), torch.from_numpy(sent.values()))
    assert torch.linalg.norm(wanted - heard) < 0.15 * torch.linalg.norm(wanted)
    torch.testing.assert_close(heard + residual.error, wanted, rtol=0, atol=1e-5)


def test_clearing_is_the_way_out_after_nan() -> None:
    residual = Residual(torch.tensor([float("nan"), 1.0]), beta=0.9)
    residual.clear()
    residual.absorb(torch.tensor([1.0, 2.0]))
    assert residual.error.tolist() == [1.0, 2.0]


def test_a_delta_of_another_model_is_our_own_mistake() -> None:
    sent = select(torch.ones(5), Layout((5,)), 64)
    with pytest.raises(AssertionError):
        Residual(torch.zeros(6), beta=1.0).subtract(sent, np.ones(1))
