"""docs/configuration.md, made from the settings themselves: python -m shoal.node.config_page

Names, types, ranges, defaults and texts come from config.py and parameters.py; only what surrounds
them is written here. A test compares the page with what this makes.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from shoal.node.config import SECTIONS, Settings
from shoal.node.mesh_parameters import FIXED
from shoal.node.parameters import RANGES, MeshParameters
from shoal.node.toml_file import toml_value

# Settings with an option of their own. Every setting can also be given as --set section.key=value.
FLAGS: Mapping[str, tuple[str, str]] = {
    "node.listen": ("--listen", "`run`, `join`"),
    "node.advertise": ("--advertise", "`join`"),
    "train.device": ("--device", "`run`, `join`"),
    "train.data": ("--data", "`init`, `join`"),
    "train.base": ("--base", "`join`"),
    "train.task": ("--task", "`join`"),
}
ABOUT = {
    "node": "Who it is and where it listens.",
    "train": "What it trains on, and how much of the machine that may take.",
    "gossip": "How deltas travel.",
    "consensus": "How it votes.",
    "retention": "Which checkpoints it keeps.",
    "tracking": "Who shows what it does, besides `shoal runs` ([tracking](tracking.md)).",
    "log": "What it tells while it runs, on stderr.",
}
HEAD = """\
# Configuration

Made by `make configuration` from `node/config.py` and `node/parameters.py`; do not edit it by hand.

A node reads four layers, each stronger than the one before: the defaults below, its `node.toml`,
environment variables, options of the command line. `shoal run`, `shoal init` and `shoal join` take
each setting as `--set section.key=value`; those with a shorter option name it below. In a variable
a list is written `a,b`. A name that does not exist is an error that names the nearest one. A
relative path in `node.toml` is meant from where that file lies, any other from where the command is
run.
`shoal init` and `shoal join` write a `node.toml` with every setting explained; `--preset FILE`
(`configs/`) sets several at once.
"""
MESH = """\
## Mesh parameters

What all members do alike. They are chosen when the mesh is made, in `[mesh]` of a `--preset`
(`budget` also by `shoal init --budget`), and are part of the genesis, so a `node.toml` cannot set
them. A quorum of the validators changes them with `shoal parameters DIR --set KEY=VALUE`, from the
next epoch on ([adr/0012](adr/0012-mesh-parameters-change-at-epochs.md)).
"""


def page() -> str:
    """The whole page."""
    blocks = [HEAD]
    blocks += [_section(name) for name in SECTIONS]
    blocks.append(MESH)
    blocks.append(_table(("parameter", "type and range", "default", "what it is"), _mesh_rows()))
    fixed = (f"- `{name}`: {why}." for name, why in FIXED.items())
    blocks.append("Fixed with the genesis:\n\n" + "\n".join(fixed) + "\n")
    return "\n".join(blocks)


def _section(name: str) -> str:
    columns = ("setting", "type and range", "default", "what it is")
    return f"## [{name}]\n\n{ABOUT[name]}\n\n{_table(columns, _rows(name))}"


def _rows(section: str) -> Iterator[tuple[str, ...]]:
    schema = Settings.model_json_schema()
    properties = schema["$defs"][SECTIONS[section].__name__]["properties"]
    for key, field in SECTIONS[section].model_fields.items():
        variable = f"SHOAL_{section}__{key}".upper()
        names = f"`{key}`<br>`{variable}`"
        if flag := FLAGS.get(f"{section}.{key}"):
            names += f"<br>`{flag[0]}` ({flag[1]})"
        default = f"`{toml_value(field.get_default())}`"
        yield names, _kind(properties[key]), default, field.description or ""


def _mesh_rows() -> Iterator[tuple[str, ...]]:
    texts = _docstrings(MeshParameters)
    for each in fields(MeshParameters):
        low, high = RANGES[each.name]
        kind = "integer" if isinstance(each.default, int) else "number"
        whole = {"type": kind, "minimum": low, "maximum": high}
        span = _kind({"type": "boolean"} if isinstance(each.default, bool) else whole)
        yield f"`{each.name}`", span, f"`{toml_value(each.default)}`", texts[each.name]


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words: "whole number, 1 to 64"."""
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else None):
        return ", ".join(f'`"{each}"`' for each in choices)
    if schema["type"] == "array":
        return f"list; each: {_kind(schema['items'])}"
    words = {"boolean": "`true` or `false`", "integer": "whole number", "number": "number"}
    kind = words.get(schema["type"], "path" if schema.get("format") == "path" else "text")
    if pattern := schema.get("pattern"):
        return f"{kind} that matches `{pattern}`"
    return ", ".join(filter(None, (kind, _span(schema))))


def _span(schema: Mapping[str, Any]) -> str:
    if "minLength" in schema:
        longest = schema.get("maxLength")
        return f"{schema['minLength']} to {longest} characters" if longest else "not empty"
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    begin = f"above {_number(above)}" if above is not None else ""
    begin = _number(low) if low is not None else begin
    if high is not None:
        return f"{begin} to {_number(high)}"
    if below is not None:
        return f"{begin} to below {_number(below)}"
    return f"{begin} or more" if begin else ""


def _number(value: float) -> str:
    """2^62 for what nobody reads as digits."""
    exponent = int(value).bit_length() - 1
    return f"2^{exponent}" if exponent >= 30 and value == 1 << exponent else f"{value:,.10g}"


def _docstrings(made: type) -> dict[str, str]:
    """The string below each field of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(made))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: text.value.value
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    escaped = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    lines = [columns, ("---",) * len(columns), *escaped]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(page())
