"""The demo's verdict: every promise that does not hold is named, and none is invented."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shoal.node.report import Losses, Outcome, build_report, failures, report_view, write_report
from shoal.proto import inspect_pb2
from tests.node.fake_node import example_checkpoint, example_reply


def finished_node(index: int, **checkpoint_changes: Any) -> inspect_pb2.StatusReply:
    reply = example_reply(node=f"node{index}")
    reply.training.round = 24
    reply.training.state = "finished"
    del reply.checkpoints[:]
    reply.checkpoints.extend(example_checkpoint(height) for height in (1, 2, 3))
    for name, value in checkpoint_changes.items():
        setattr(reply.checkpoints[-1], name, value)
    return reply


def good_outcome(**changes: Any) -> Outcome:
    outcome = Outcome(
        replies=tuple(finished_node(index) for index in range(4)),
        anchor_files=("aa",) * 4,
        rounds_planned=24,
        join_seconds=8.31,
        losses=Losses(mesh=2.1, solo=(2.5, 2.4, 2.6, 2.45), start=5.545),
        sample="The import statement",
        seconds_by_phase={"training": 60.04, "evaluation": 40.0},
        environment={"cpus": 2},
    )
    return replace(outcome, **changes)


def verdict(**changes: Any) -> list[str]:
    return failures(build_report(good_outcome(**changes)))


def test_a_run_that_kept_its_promises_has_no_failures() -> None:
    assert verdict() == []


def test_the_report_has_the_form_that_programs_expect() -> None:
    report = json.loads(json.dumps(build_report(good_outcome()), allow_nan=False))
    assert report["nodes"] == 4
    assert report["rounds"] == 24
    assert report["seconds"] == 100.0
    assert report["join_seconds"] == 8.31
    assert report["params"] == 820_000
    assert report["anchors_equal"] is True
    first = report["checkpoints"][0]
    assert {"height": 1, "round": 8, "signatures": 3, "view": 0}.items() <= first.items()
    assert first["root"] == f"{1:064x}"
    assert report["loss"] == {"mesh": 2.1, "solo": [2.5, 2.4, 2.6, 2.45], "start": 5.545}
    assert report["bytes"]["sent_per_node"] == [1_236_567] * 4
    assert report["bytes"]["delta_bits_per_kept_value"] == 9.42
    assert report["bytes"]["compression_vs_fp32"] == 27.0
    assert report["sample"] == "The import statement"


def test_a_mesh_that_is_not_better_than_every_shard_alone_fails() -> None:
    assert verdict(losses=Losses(mesh=2.4, solo=(2.5, 2.4, 2.6, 2.5), start=5.5)) == [
        "the mesh's loss 2.4 is not below the best shard's alone, 2.4"
    ]


def test_a_loss_that_is_not_a_number_is_never_a_success(tmp_path: Path) -> None:
    report = build_report(good_outcome(losses=Losses(mesh=float("nan"), solo=(2.5,) * 4, start=5)))
    assert any("could not be measured" in line for line in failures(report))
    write_report(tmp_path / "report.json", report)
    assert json.loads((tmp_path / "report.json").read_text())["loss"]["mesh"] is None


def test_losses_that_are_missing_fail() -> None:
    assert verdict(losses=None) == ["the losses could not be measured"]
    short = Losses(mesh=2.1, solo=(2.5, 2.5), start=5.5)
    assert verdict(losses=short) == ["the losses could not be measured"]


def test_two_certified_checkpoints_are_not_enough() -> None:
    replies = [finished_node(index, signatures=2) for index in range(4)]
    assert verdict(replies=tuple(replies)) == [
        "2 checkpoints carry 3 or more signatures, 3 are required"
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"anchor_files": ("aa", "aa", "bb", "aa")},
        {"anchor_files": ("aa", "aa", "", "aa")},
        {"anchor_files": ("",) * 4},
        {"replies": (*(finished_node(i) for i in range(3)), finished_node(3, root="f" * 64))},
        {"replies": (*(finished_node(i) for i in range(3)), finished_node(3, materialised=False))},
    ],
    ids=["another file", "no file", "no files", "another root", "not rebuilt"],
)
def test_anchors_are_equal_only_when_every_node_holds_the_same(changes: dict[str, Any]) -> None:
    assert verdict(**changes) == ["the nodes' anchors are not equal"]


def test_a_node_that_fell_behind_is_not_equal() -> None:
    behind = finished_node(3)
    del behind.checkpoints[-1]
    replies = (*(finished_node(index) for index in range(3)), behind)
    assert verdict(replies=replies) == ["the nodes' anchors are not equal"]


def test_rounds_that_were_not_made_fail() -> None:
    slow = finished_node(0)
    slow.training.round = 20
    replies = (slow, *(finished_node(index) for index in range(1, 4)))
    assert verdict(replies=replies) == ["a node made only 20 of 24 rounds"]


def test_what_went_wrong_on_the_way_is_a_failure_even_when_the_numbers_are_good() -> None:
    assert verdict(problems=("node2: died with signal 9",)) == ["node2: died with signal 9"]


def test_a_run_in_which_no_node_answered_still_gives_a_report() -> None:
    report = build_report(good_outcome(replies=(), anchor_files=(), losses=None))
    assert report["nodes"] == 0
    assert report["anchors_equal"] is False
    assert len(failures(report)) >= 3


def test_the_report_replaces_the_one_before_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    write_report(path, build_report(good_outcome()))
    assert json.loads(path.read_text())["nodes"] == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_on_screen_the_report_names_each_failure() -> None:
    outcome = good_outcome(problems=("node2: died with signal 9",), sample="[b]not markup[/b]")
    output = io.StringIO()
    Console(file=output, width=120).print(report_view(build_report(outcome)))
    text = output.getvalue()
    assert "FAILED: node2: died with signal 9" in text
    assert "[b]not markup[/b]" in text
    assert "shard 3 alone" in text
    assert "24 rounds = 192 steps" in text
