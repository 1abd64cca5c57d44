"""Presets: what they may say, and that those in configs/ are good ones."""

from pathlib import Path

import pytest

from shoal.node.config import document_settings, load_settings
from shoal.node.errors import UserError
from shoal.node.presets import apply_preset, load_preset

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def test_there_is_a_preset_for_one_machine_for_a_network_and_for_the_internet() -> None:
    assert [path.stem for path in SHIPPED] == ["lan", "local", "wan"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_preset_overrides_only_what_differs(path: Path) -> None:
    preset = load_preset(path)
    defaults = load_settings(None)
    assert preset.mesh or preset.settings
    for name, value in preset.settings.items():
        section, key = name.split(".")
        assert getattr(getattr(defaults, section), key) != value


def test_a_preset_lies_below_what_node_toml_says(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(document_settings({"gossip.degree": 3, "node.name": "a"}))
    (tmp_path / "preset.toml").write_text("[gossip]\ndegree = 6\nfetch_parallel = 9\n")
    apply_preset(load_preset(tmp_path / "preset.toml"), tmp_path)
    settings = load_settings(tmp_path)
    assert (settings.gossip.degree, settings.gossip.fetch_parallel) == (3, 9)
    assert settings.node.name == "a"


def test_flags_are_kept_above_what_node_toml_says(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(document_settings({"train.device": "cpu"}))
    flags = {"train.device": "cuda:1", "train.batch": 4, "train.seed": None}
    apply_preset(load_preset(None), tmp_path, flags)
    train = load_settings(tmp_path).train
    assert (train.device, train.batch, train.seed) == ("cuda:1", 4, 0)


def test_no_preset_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("# mine\n")
    apply_preset(load_preset(None), tmp_path)
    assert (tmp_path / "node.toml").read_text() == "# mine\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[gossip]\ndegre = 6\n", "did you mean gossip.degree?"),
        ("degree = 6\n", "did you mean gossip.degree?"),
        ("[gossip]\ndegree = 0\n", "gossip.degree"),
        ("mesh = 3\n", "write [mesh]"),
        ("[gossip\n", "line 1"),
    ],
)
def test_a_wrong_preset_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "preset.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_preset(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)
