"""Presets: a TOML file that overrides only what differs, applied once, when a node is made.

Its [mesh] table holds what all members must do alike, [lora] which adapters they train if not a
whole model: both go into the genesis. The rest is written into node.toml, where the operator sees
it and may change it again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shoal.node.config import CONFIG_NAME, Settings, document_settings, nearest, setting_names
from shoal.node.errors import UserError
from shoal.node.toml_file import read_toml


@dataclass(frozen=True, slots=True)
class Preset:
    """What a preset file sets."""

    mesh: Mapping[str, Any]
    # By dotted name, like {"gossip.degree": 6}.
    settings: Mapping[str, Any]
    lora: Mapping[str, Any] = field(default_factory=dict)


def load_preset(path: Path | None) -> Preset:
    """Read and check a preset; None is the empty one. Raises UserError, one line."""
    if path is None:
        return Preset(mesh={}, settings={})
    content = read_toml(path)
    for name in ("mesh", "lora"):
        if not isinstance(content.get(name, {}), dict):
            raise UserError(f"{path}: {name} is a table; write [{name}] and its keys below it")
    mesh, lora = content.pop("mesh", {}), content.pop("lora", {})
    settings = flatten(content)
    check_names(f"{path}: ", settings, setting_names())
    try:
        Settings(**content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"][:2]))
        raise UserError(f"{path}: {name}: {first['msg']}, not {first['input']!r}") from None
    return Preset(mesh=mesh, settings=settings, lora=lora)


def with_preset(
    preset: Preset, values: Mapping[str, Any], flags: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """`values` by dotted name with the preset's below them and the flags that were given above."""
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    return {**preset.settings, **values, **given}


def apply_preset(
    preset: Preset, directory: Path, flags: Mapping[str, object] | None = None
) -> None:
    """Write the preset's settings into directory/node.toml, below what stands there already.

    flags: by dotted name, above what stands there, so that they hold at the next start too.
    """
    path = directory / CONFIG_NAME
    before = flatten(read_toml(path))
    values = with_preset(preset, before, flags)
    if values != before:
        path.write_text(document_settings(values), encoding="utf-8")


def check_names(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise UserError for the first name that is not known, with the nearest one that is."""
    known = list(known)
    for name in names:
        if name not in known:
            raise UserError(
                f"{where}{name}: there is no such setting; did you mean {nearest(name, known)}?"
            )


def flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    """{"node": {"listen": x}} as {"node.listen": x}."""
    flat: dict[str, Any] = {}
    for section, table in content.items():
        if isinstance(table, Mapping):
            flat.update({f"{section}.{key}": value for key, value in table.items()})
        else:
            flat[section] = table
    return flat
