"""`shoal init --budget`: one dial, turned by a number or by the speed of a link."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shoal.gossip.density import LEVELS
from shoal.node import cli
from shoal.node.config import TrainSettings
from shoal.node.errors import UserError
from shoal.node.founding import Start
from shoal.node.genesis import load_genesis
from shoal.node.link_budget import Work, meaning, measure_work, with_budget
from shoal.node.parameters import MeshParameters
from shoal.node.verify_parameters import density
from tests.node.mesh import TINY_MODEL

MESH = MeshParameters(local_steps=10)


def start_with(config: dict[str, Any]) -> Callable[[], Start]:
    return partial(Start.of, config, None, None)


def nobody_asks(_: float) -> Work:
    raise AssertionError("a number needs no measurement")


def test_a_number_is_bytes_per_parameter_and_round() -> None:
    assert with_budget(MESH, "0.25", 4, nobody_asks) == replace(MESH, budget=0.25)


@pytest.mark.parametrize("text", ["16Mbit", "16 Mbit/s", "16000kbit", "0.016Gbit"])
def test_a_links_speed_is_what_it_carries_while_the_steps_are_made(text: str) -> None:
    """Half of 2 MB a second for ten steps of 0.2 s, on ten million parameters."""
    mesh = with_budget(MESH, text, 4, lambda _: Work(parameters=10_000_000, step_seconds=0.2))
    assert mesh.budget == pytest.approx(0.2)
    assert meaning(mesh, 4, 10_000_000).startswith("256 of each 4096 values are said every 10 ")
    assert "1.5 MB a round" in meaning(mesh, 4, 10_000_000)


def test_where_the_budget_says_how_often_a_links_speed_is_what_it_carries_in_five_steps() -> None:
    mesh = with_budget(
        MeshParameters(), "640kbit", 4, lambda _: Work(parameters=10_000_000, step_seconds=0.2)
    )
    assert mesh.budget == pytest.approx(0.004)
    assert meaning(mesh, 4, 10_000_000).startswith("16 of each 4096 values are said every 20 ")
    assert "0.16 MB a round" in meaning(mesh, 4, 10_000_000)
    with pytest.raises(UserError, match=r"round of 640 steps.* at least; make the model smaller"):
        with_budget(MeshParameters(), "0.0001", 1000, nobody_asks)


def test_muon_is_left_to_those_whose_steps_are_long_enough_for_it() -> None:
    """Its own part of a step is the same however few tokens the step has."""

    def work(muon_scale: float) -> Work:
        return Work(10_000_000, tokens_s + (0.24 if muon_scale else 0.0))

    found = {}
    for tokens_s in (0.69, 0.11):
        mesh = with_budget(MeshParameters(), "10Mbit", 4, work, choose_optimiser=True)
        found[tokens_s] = mesh.muon_scale
        took_s = tokens_s + (0.24 if mesh.muon_scale else 0.0)
        assert mesh.budget == pytest.approx(0.5 * 10e6 / 8 * 5 * took_s / 10_000_000)
        assert ("AdamW trains all of it" in meaning(mesh, 4, 10_000_000)) == (not mesh.muon_scale)
    assert found == {0.69: MeshParameters().muon_scale, 0.11: 0.0}
    # Chosen by somebody, or without a measurement, it stays.
    assert with_budget(MeshParameters(), "10Mbit", 4, work).muon_scale
    assert with_budget(MeshParameters(), "0.06", 4, nobody_asks, choose_optimiser=True).muon_scale


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fast", "write bytes per parameter and round, like 0.06, or"),
        ("20MB", "like 20Mbit"),
        ("nan", "must be from"),
        ("inf", "must be from"),
        ("-1", "at least"),
        ("0.0003", "make local_steps larger"),
        ("1kbit", "make local_steps larger"),
    ],
)
def test_a_budget_that_buys_nothing_is_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as refusal:
        with_budget(MESH, text, 4, lambda _: Work(parameters=10_000_000, step_seconds=0.2))
    assert "\n" not in str(refusal.value)


def test_steps_are_measured_on_the_model_that_will_be_trained() -> None:
    settings = TrainSettings(batch=2, sequence=16)
    work = measure_work(start_with(TINY_MODEL), "builtin:0/4", settings, 0.0)
    assert 0 < work.step_seconds < 60
    assert work.parameters < 100_000
    with pytest.raises(UserError, match="they do not belong together"):
        measure_work(start_with({**TINY_MODEL, "vocab_size": 8}), "builtin:0/4", settings, 0.0)


def test_a_mesh_is_made_for_a_budget_and_says_what_it_comes_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "config.json"
    model.write_text(json.dumps(TINY_MODEL))
    words = ["init", str(tmp_path / "mesh"), "--model", str(model), "--nodes", "3"]
    assert cli.main([*words, "--budget", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "budget: 512 of each 4096 values are said every 5 steps; each of 3 members" in said
    genesis, _, _ = load_genesis(tmp_path / "mesh" / "node2" / "genesis")
    assert genesis.parameters.budget == 0.2
    assert genesis.epoch_parameters().kept_per_chunk == 512


def test_the_verifier_has_the_same_table() -> None:
    for members in (1, 2, 3, 4, 7, 31, 64, 65, 66, 1000):
        for budget in (1e-4, 1e-3, 4e-3, *(cost * members for _, cost in LEVELS), 0.06, 1e3):
            for steps in (0, 5):
                known = {"budget": budget, "local_steps": steps}
                mesh = MeshParameters(budget=budget, local_steps=steps)
                assert density(known, members) == mesh.kept_per_chunk(members)
