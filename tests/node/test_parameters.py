"""What follows from the dial: how often members speak, and how much they say and keep."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.node.parameters import MeshParameters, most_kept_per_chunk

MESH = MeshParameters()


def test_the_default_is_rounds_of_five_steps_and_a_checkpoint_after_forty() -> None:
    found = MESH.worked_out(4)
    assert found == replace(MESH, local_steps=5)
    assert found.rounds_per_checkpoint * found.local_steps == 40
    assert MESH.kept_per_chunk(4) == 64


@pytest.mark.parametrize(
    ("budget", "steps", "checkpoint_rounds", "share"),
    [(0.008, 10, 4, 0.4), (0.004, 20, 2, 0.5), (0.002, 40, 1, 0.5), (0.0001, 640, 1, 0.5)],
)
def test_a_small_budget_makes_rounds_longer_and_who_says_little_keep_more(
    budget: float, steps: int, checkpoint_rounds: int, share: float
) -> None:
    found = replace(MESH, budget=budget).worked_out(4)
    assert found.local_steps == steps
    assert found.budget == budget * steps / 5, "a budget is of a round, and this one is longer"
    assert found.rounds_per_checkpoint == checkpoint_rounds
    assert found.start_share == pytest.approx(share)


def test_who_wants_to_keep_most_of_the_unsaid_already_keeps_no_less() -> None:
    assert replace(MESH, budget=0.004, start_share=0.8).worked_out(4).start_share == 0.8


def test_a_mesh_that_grows_speaks_less_often_and_one_that_shrinks_as_before() -> None:
    steps = [MESH.worked_out(members).local_steps for members in (1, 2, 64, 256, 1024, 64)]
    assert steps == [5, 5, 5, 20, 80, 5]


def test_steps_that_somebody_chose_are_left_alone() -> None:
    chosen = replace(MESH, local_steps=7, budget=0.0001)
    assert chosen.worked_out(4) == chosen
    assert chosen.kept_per_chunk(4) == 1


@settings(deadline=None)
@given(budget=st.floats(1e-4, 1e3), members=st.integers(1, 1024), steps=st.sampled_from((0, 5, 50)))
def test_what_is_worked_out_may_come_into_force_and_comes_to_the_same(
    budget: float, members: int, steps: int
) -> None:
    mesh = replace(MESH, budget=budget, local_steps=steps)
    found = mesh.worked_out(members)
    assert found.worked_out(members) == found
    assert found.kept_per_chunk(members) == mesh.kept_per_chunk(members)
    assert found.kept_per_chunk(members) <= most_kept_per_chunk(mesh), "a frame of it is read"
