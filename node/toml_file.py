"""Reading a configuration file so that an error can name the line, and writing one.

The standard library reads TOML and does not write it; what is written here is only strings,
numbers, booleans and lists of them.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.node.errors import UserError

_MAX_BYTES = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """Return the file's content; raises UserError that names the file, and the line of a slip."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path}: larger than 1 MiB, so it is not a Shoal configuration")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; make a mesh with `shoal init`, or join one with `shoal join`"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path and its permissions") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, so it is not a Shoal configuration") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def line_of(path: Path, section: str, key: str) -> int | None:
    """Return the line on which [section] key stands, or the section itself when key is "".

    None where it is written in a form that a line cannot be named for (dotted, inline).
    """
    current = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            current = header[1]
            if not key and current == section:
                return number
        elif assigned := re.match(r"\s*([\w.-]+)\s*=", line):
            here = (current, assigned[1]) if current else (assigned[1], "")
            if here == (section, key):
                return number
    return None


def toml_value(value: object) -> str:
    """Return the value as TOML writes it; anything but a number, boolean or list is a string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge key by key; anything else in `over` replaces what is in `base`."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def nested(dotted: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """{"train.batch": 4} as tables: {"train": {"batch": 4}}."""
    nested: dict[str, dict[str, object]] = {}
    for name, value in dotted.items():
        section, _, key = name.partition(".")
        nested.setdefault(section, {})[key] = value
    return nested
