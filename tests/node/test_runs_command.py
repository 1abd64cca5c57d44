"""`shoal runs` over the directories of nodes."""

import csv
import io
import json
from pathlib import Path

import pytest

from shoal.node.cli import main
from shoal.node.errors import BAD_INPUT
from shoal.node.runs_report import chart
from tests.node.example_runs import began, keep, round_done, whole_run


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    """A mesh of two nodes: one was killed and started again with another batch, one ran longer."""
    keep(tmp_path / "node0", [began(), round_done(1), round_done(2)])
    settings = {"node.name": "node0", "train.batch": 16}
    keep(tmp_path / "node0", whole_run("000002", previous="000001", settings=settings))
    keep(tmp_path / "node1", whole_run("000001", rounds=12, node="node1"))
    (tmp_path / "node1" / "runs" / "000002.jsonl").touch()
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert main(["runs", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_list_shows_every_run_of_every_node(mesh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A path as long as a test's would be folded.
    found = json.loads(printed(capsys, "list", mesh, "--json"))
    assert [each["run"] for each in found] == [
        f"{mesh / 'node0'}:1",
        f"{mesh / 'node0'}:2",
        f"{mesh / 'node1'}:1",
    ]
    assert [each["ended"] for each in found] == ["killed", "stopped", "stopped"]
    assert [each["round"] for each in found] == [2, 8, 12]
    assert [each["held_out_loss"] for each in found] == [None, 2.0, pytest.approx(4 / 3)]
    table = printed(capsys, "list", mesh / "node0", mesh / "node1")
    assert table.count("stopped") == 2 and "killed" in table and "█" in table
    lines = list(csv.DictReader(io.StringIO(printed(capsys, "list", mesh, "--csv"))))
    assert [line["tokens"] for line in lines] == ["2000", "8000", "12000"]


def test_show_tells_how_a_run_went(mesh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "show", mesh / "node0")
    assert "after run 000001" in shown
    assert "train.batch = 16" in shown and "loss 5.0000 → " in shown
    assert "train 2.000 s, compress 0.100 s" in shown
    assert "5.000 █" in shown, "the first round has the highest loss"
    whole = json.loads(printed(capsys, "show", f"{mesh / 'node0'}:2", "--json"))
    assert [each["round"] for each in whole["rounds"]] == list(range(1, 9))
    assert [each["held_out_loss"] for each in whole["checkpoints"]] == [4.0, 2.0]
    path = mesh / "node0" / "runs" / "000001.jsonl"
    rounds = list(csv.DictReader(io.StringIO(printed(capsys, "show", path, "--csv"))))
    assert [(line["round"], line["sent_delta_bytes"]) for line in rounds] == [
        ("1", "1500"),
        ("2", "3000"),
    ]


def test_compare_meets_where_both_have_been_and_says_what_was_different(
    mesh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = (f"{mesh / 'node0'}:2", f"{mesh / 'node1'}:1")
    found = json.loads(printed(capsys, "compare", *two, "--json"))
    assert found["differences"] == {"train.batch": [16, 8]}
    first, second = found["runs"]
    assert first["common_tokens"] == second["common_tokens"] == 8000
    assert first["loss_at_common_tokens"] == second["loss_at_common_tokens"]
    assert second["loss"] < second["loss_at_common_tokens"], "it went on from there"
    assert (second["common_height"], second["held_out_at_common_height"]) == (2, 2.0)
    table = printed(capsys, "compare", *two)
    assert "loss after 8,000 tokens" in table and "held-out loss at height 2" in table
    assert "train.batch" in table
    (one, other) = csv.DictReader(io.StringIO(printed(capsys, "compare", *two, "--csv")))
    assert (one["round"], other["round"]) == ("8", "12")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("list", "MESH/nowhere"), "is no directory"),
        (("list", "MESH/empty"), "has no runs yet"),
        (("show", "MESH/node0:7"), "there is no run"),
        (("show", "MESH/empty"), "there is no run"),
        (("show", "MESH/text"), "is no run of a node"),
        (("compare", "MESH/node0"), "name two runs or more"),
        (("list", "MESH", "--json", "--csv"), "not both"),
        (("show", "MESH/node0", "--json", "--csv"), "not both"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    mesh: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], complaint: str
) -> None:
    (mesh / "empty").mkdir()
    (mesh / "text").write_text('{"kind": "round"}\nno JSON\n')
    (mesh / "node0" / "runs" / "0x.jsonl").write_text("neither\n")
    assert main(["runs", *(word.replace("MESH", str(mesh)) for word in words)]) == BAD_INPUT
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert complaint in said.err


def test_a_chart_shows_the_shape_of_few_values_and_of_many() -> None:
    assert chart([8, 4, 1], width=10, height=1) == ["█▄▁"]
    assert chart([3, 3], width=10, height=1) == ["▁▁"]
    (line,) = chart(list(range(1000, 0, -1)), width=8, height=1)
    assert line == "█▇▆▅▄▃▂▁"
    upper, lower = chart([2, 1], width=2, height=2)
    assert (upper, lower) == ("█ ", "█▁")
