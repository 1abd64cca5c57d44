"""The table of reason words in gossip/README.md is the one in the code."""

import ast
import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "gossip"


def raised_reasons() -> set[str]:
    """First arguments of everything that looks like an error being made."""
    found = set()
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            first = node.args[0]
            named = isinstance(node.func, ast.Name) and node.func.id.endswith("Error")
            above = isinstance(node.func, ast.Attribute) and node.func.attr == "__init__"
            if (named or above) and isinstance(first, ast.Constant):
                found.add(str(first.value))
    return {word for word in found if re.fullmatch(r"[a-z]+(-[a-z]+)*", word)}


def test_every_reason_is_explained_and_none_is_invented() -> None:
    explained = set(re.findall(r"^\| `([a-z-]+)` \|", (FOLDER / "README.md").read_text(), re.M))
    assert explained == raised_reasons()
