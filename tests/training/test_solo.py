"""A node on its own: trains, measures, writes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from shoal.training import solo
from tests.training.worker_process import tiny_settings


@pytest.fixture(autouse=True)
def _leave_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")


def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *flags: str,
    **settings: Any,
) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(tiny_settings(**settings))))
    monkeypatch.setattr("sys.argv", ["solo", *flags])
    code = solo.main()
    output: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, output


def test_training_lowers_the_loss_and_what_is_saved_measures_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "weights.bin")
    evaluate = ["builtin:0/64", "builtin:1/64"]
    code, start = run(monkeypatch, capsys, evaluate=evaluate)
    assert (code, start["steps"], start["train_loss"]) == (0, 0, None)
    _, trained = run(monkeypatch, capsys, steps=20, evaluate=evaluate, save=path)
    _, again = run(monkeypatch, capsys, weights=path, evaluate=evaluate)

    assert trained["steps"] == 20
    assert trained["tokens"] == 20 * 4 * 32
    assert trained["loss"] < start["loss"] - 0.3
    assert list(trained["losses"]) == evaluate
    assert trained["loss"] == pytest.approx(sum(trained["losses"].values()) / 2)
    assert again["losses"] == pytest.approx(trained["losses"], abs=1e-6)


def test_weights_can_write(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = run(monkeypatch, capsys, "--sample", prompt="def ", new_tokens=9)
    assert code == 0
    assert set(output) == {"text"}
    assert 0 < len(output["text"]) <= 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "/nowhere/w.bin"}, "/nowhere/w.bin: No such file"),
        ({"steps": -1}, "steps must be 0 or more"),
        ({"evaluate": "builtin:0/4"}, "evaluate must be a list"),
        ({"data": "/nowhere"}, "/nowhere: does not exist"),
        ({"speed": 3}, "there is no training setting speed"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    message: str,
) -> None:
    code, output = run(monkeypatch, capsys, **settings)
    assert code == 2
    assert message in output["error"]
