"""docs/configuration.md says what a node and a mesh can be told, each setting, as it is now."""

from dataclasses import fields
from pathlib import Path

import pytest

from shoal.node import cli
from shoal.node.config import setting_names
from shoal.node.config_page import FLAGS, page
from shoal.node.parameters import RANGES, MeshParameters

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_what_the_settings_say_now() -> None:
    assert PAGE.read_text() == page(), "run `make configuration`"


def test_it_has_a_row_for_every_setting_with_its_variable_and_default() -> None:
    text = PAGE.read_text()
    for name in setting_names():
        section, key = name.split(".")
        assert f"| `{key}`<br>`SHOAL_{section.upper()}__{key.upper()}`" in text
    for each in fields(MeshParameters):
        assert f"| `{each.name}` | " in text
    assert "| whole number, 0 to 19 | `10` |" in text, "nice, with its range"
    assert r"`^(auto\|cpu\|cuda(:\d{1,3})?)$`" in text, "a bar would end the cell"


def test_ranges_are_of_the_parameters_that_there_are() -> None:
    assert list(RANGES) == [each.name for each in fields(MeshParameters)]


@pytest.mark.parametrize("name", FLAGS)
def test_the_options_it_names_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name in setting_names()
    option, commands = FLAGS[name]
    for command in commands.replace("`", "").split(", "):
        assert cli.main([command, "--help"]) == 0
        assert f"  {option} " in capsys.readouterr().out
