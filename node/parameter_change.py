"""A change of the mesh's parameters as a person writes it; those in force as a person reads them.

Which ones can change, and how a change is carried, is in mesh_parameters.py.
"""

import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from shoal.node.config import nearest
from shoal.node.errors import UserError
from shoal.node.mesh_parameters import CHANGEABLE, FIXED, differences
from shoal.node.parameters import MeshParameters


@dataclass(frozen=True, slots=True)
class MeshAnswer:
    """What a node says of its mesh's parameters. decided: those of the next epoch, if any."""

    epoch: int
    members: int
    in_force: MeshParameters
    decided: MeshParameters | None


def parse_settings(pairs: Iterable[str]) -> dict[str, str]:
    """["clip_factor=3"] as {"clip_factor": "3"}; raises UserError."""
    parsed: dict[str, str] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not (separator and name.strip() and text.strip()):
            raise UserError(f"--set {pair}: write key=value, like --set clip_factor=3")
        parsed[name.strip()] = text.strip()
    return parsed


def answer_lines(answer: MeshAnswer) -> list[str]:
    """One parameter a line: its value, what it will be, and why it cannot change if so."""
    coming = differences(answer.in_force, answer.decided) if answer.decided else {}
    now = asdict(answer.in_force.worked_out(answer.members))
    lines = [f"in force in epoch {answer.epoch}, {answer.members} members"]
    for name, value in asdict(answer.in_force).items():
        note = f"  now {now[name]:.4g}" if now[name] != value else ""
        note = f"  decided: {coming[name]}" if name in coming else note
        note = f"  fixed: {FIXED[name]}" if name in FIXED else note
        lines.append(f"  {name:<22} {value!s:>12}{note}")
    return lines


def as_plain(answer: MeshAnswer) -> dict[str, Any]:
    """The same for a program."""
    now = asdict(answer.in_force.worked_out(answer.members))
    return {**asdict(answer), "worked_out": now, "changeable": CHANGEABLE}


def changed(mesh: MeshParameters, settings: Mapping[str, str]) -> MeshParameters:
    """`mesh` with these values, as a person wrote them; raises UserError, one line."""
    values: dict[str, Any] = {name: _value(name, text) for name, text in settings.items()}
    after = replace(mesh, **values)
    if problems := after.problems():
        raise UserError(f"--set {problems[0]}")
    if after == mesh:
        raise UserError("nothing would change: those values are in force already")
    return after


def _value(name: str, text: str) -> int | float | bool:
    if name in FIXED:
        raise UserError(f"--set {name}: fixed when the mesh was made, since {FIXED[name]}")
    if name not in CHANGEABLE:
        raise UserError(
            f"--set {name}: a mesh has no such parameter that can change; "
            f"did you mean {nearest(name, CHANGEABLE)}?"
        )
    usual = getattr(MeshParameters(), name)
    whole = isinstance(usual, int)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = None
    if isinstance(usual, bool):
        if not isinstance(value, bool):
            raise UserError(f"--set {name}={text}: write true or false")
        return value
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise UserError(f"--set {name}={text}: write a {'whole ' if whole else ''}number")
    with suppress(OverflowError):
        return int(value) if whole else float(value)
    # Far out of every range, which is what will be said of it.
    return int(value)
