"""Options that several commands share, and how --set is read."""

import contextlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from shoal.node.errors import UserError

Target = Annotated[
    str, typer.Argument(help="a node's directory, or the host:port where it can be inspected")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs, not text for people")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="a setting, like train.batch=4")
]
PresetFile = Annotated[
    Path | None, typer.Option("--preset", help="a file like configs/wan.toml to start from")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N")]


def parse_overrides(pairs: Sequence[str]) -> dict[str, object]:
    """["train.batch=4"] as {"train.batch": 4}; a value that is not TOML is a string."""
    parsed: dict[str, object] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (separator and dot and section and key):
            raise UserError(f"--set {pair}: write section.key=value, like --set train.batch=4")
        value: object = text
        with contextlib.suppress(tomllib.TOMLDecodeError):
            value = tomllib.loads(f"value = {text}")["value"]
        parsed[name.strip()] = value
    return parsed


def answer(facts: Mapping[str, object], lines: Sequence[str], *, as_json: bool) -> None:
    """Print what a command has to say: the facts for a program, or the lines for a person."""
    print(json.dumps(facts, indent=2, allow_nan=False) if as_json else "\n".join(lines), flush=True)
