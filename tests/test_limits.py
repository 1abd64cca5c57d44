"""docs/limits.md says what the code does: each value there, and each limit of the code there."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.node.admission import LIMITS
from shoal.node.conduct import BYTES, MESSAGES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "limits.md").read_text()
ROW = re.compile(r"\| [^|]+ \| `(?P<file>[\w/.]+)` `(?P<name>\w+)` \| (?P<value>[^|]+) \| [^|]+ \|")
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20}
# Where what comes from outside is read and kept. Not limits on anybody outside: how far a number
# may be rounded, how often something is tried.
READERS = {
    "compression": ("streams",),
    "consensus": (
        "epochs",
        "evidence",
        "invitations",
        "ledger",
        "messages",
        "pending",
        "quorum",
        "records",
    ),
    "gossip": (
        "book",
        "delta",
        "liveness",
        "parameters",
        "probes",
        "relay",
        "rumours",
        "schema",
        "settled",
        "suspicion",
    ),
    "node": (
        "admission",
        "bulk_wire",
        "conduct",
        "consensus_driver",
        "dashboard",
        "genesis",
        "inspect_client",
        "invitations",
        "inviting",
        "lanes",
        "links",
        "look_back",
        "look_wire",
        "mesh_picture",
        "mesh_watch",
        "server",
        "toml_file",
        "wire",
    ),
    "training": ("weights_file",),
}


def number(text: str) -> float:
    """What a value of the page means: 1024, 4 MiB, 2^62."""
    digits, _, unit = text.strip().partition(" ")
    base, _, exponent = digits.partition("^")
    return float(base) ** int(exponent or 1) * UNITS.get(unit, 1)


def limits_in_code() -> Iterator[tuple[str, str]]:
    for folder, modules in READERS.items():
        for module in modules:
            path = ROOT / folder / f"{module}.py"
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    name = node.targets[0].id
                    if re.search(r"(^|_)MAX(_|$)", name):
                        yield f"{folder}/{module}.py", name


@pytest.mark.parametrize(
    "row", list(ROW.finditer(PAGE)), ids=lambda row: f"{row['file']} {row['name']}"
)
def test_a_limit_is_what_the_page_says(row: re.Match[str]) -> None:
    module = "shoal." + row["file"].removesuffix(".py").replace("/", ".")
    assert getattr(importlib.import_module(module), row["name"]) == number(row["value"])


def test_every_limit_has_a_row() -> None:
    rows = {(row["file"], row["name"]) for row in ROW.finditer(PAGE)}
    assert set(limits_in_code()) <= rows, "a limit without its line in docs/limits.md"


def test_the_rates_are_what_the_page_says() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^`]+) \|$", PAGE, re.MULTILINE))
    said = {name: tuple(map(number, cells.split("|"))) for name, cells in rows.items()}
    peers = {"bytes": BYTES, **MESSAGES}
    calls = {
        name: (limit.per_s, limit.burst, limit.open_max, limit.open_of_all_max)
        for name, limit in LIMITS.items()
    }
    assert said == {**peers, **calls}
