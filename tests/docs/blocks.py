"""The fenced blocks of a page: what it tells its reader to type, and the files it shows."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# README first: the other pages go on where it ends. The last one puts a founder out.
FIRST, LAST = "README.md", "docs/operate.md"
PAGES = (
    FIRST,
    *sorted({p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md")} - {LAST}),
    LAST,
)
LANGUAGES = {"sh", "python", "toml", "yaml", "json", "text", ""}
_FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One of them."""

    page: str
    line: int
    language: str
    # The name of the file that it is, "" for none.
    title: str
    text: str

    def commands(self) -> Iterator[str]:
        """Its commands, of sh: one a line, but for lines that end in a backslash."""
        yield from filter(None, map(str.strip, self.text.replace("\\\n", " ").splitlines()))


def read_blocks(page: str) -> list[Block]:
    """All blocks of a page, in order. page: relative to the root of the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, *found.groups(default=""))
        for found in _FENCE.finditer(text)
    ]


def without_comment(command: str) -> str:
    """`shoal run x` of `shoal run x   # what it does`."""
    return re.split(r"\s+#\s", command, maxsplit=1)[0].strip()
