"""Golden conversations: what exactly is said, line by line, in a few short stories.

Each file in transcripts/ is a list of commands (lines that start with `>`), each followed by
what the mesh said in answer. A change of protocol shows as a diff of these files and is reviewed
as one. `REWRITE_TRANSCRIPTS=1` writes them anew.
"""

import os
from pathlib import Path

import pytest

from shoal.consensus.messages import (
    CommitProof,
    Message,
    NewView,
    PrePrepare,
    Request,
    Stability,
    Status,
    ViewChange,
)
from shoal.consensus.votes import Vote
from tests.consensus.mesh import Letter, Mesh

STORIES = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


def name(message: Message) -> str:
    """The paper's name of a message."""
    match message:
        case Vote():
            return message.kind.name
        case PrePrepare():
            return "PRE-PREPARE"
        case ViewChange():
            return "VIEW-CHANGE"
        case NewView():
            return "NEW-VIEW"
        case CommitProof():
            return "COMMIT-PROOF"
        case _:
            return type(message).__name__.upper()


def describe(message: Message) -> str:
    match message:
        case Vote():
            return f"v{message.view} s{message.sequence} {message.digest.hex()[:6]}"
        case PrePrepare(vote, _):
            return describe(vote)
        case ViewChange():
            proofs = [f"s{c.sequence}@v{c.view}" for c in message.prepared]
            return f"v{message.view} low {message.low} prepared [{' '.join(proofs)}]"
        case NewView():
            senders = " ".join(str(change.signer) for change in message.view_changes)
            slots = " ".join(digest.hex()[:6] for digest, _ in message.proposals)
            return f"v{message.view} from [{senders}] proposes [{slots}]"
        case Status():
            active = "" if message.active else " waiting"
            return f"v{message.view}{active} executed {message.executed} low {message.low}"
        case CommitProof(_, certificate) | Stability(certificate, _):
            return f"s{certificate.sequence} {certificate.digest.hex()[:6]}"
        case Request():
            return f"{len(message.operation)} bytes"
        case _:
            return ""


class Teller:
    """Carries out a story's commands and writes down what is said."""

    def __init__(self) -> None:
        self.mesh = Mesh(4)

    def tell(self, command: str) -> list[str]:
        self.mesh.log.clear()
        told = [len(decided) for decided in self.mesh.decided]
        match command.split():
            case ["mesh", n]:
                self.mesh = Mesh(int(n))
                told = [0] * int(n)
            case ["submit", index, who]:
                self.mesh.submit(int(index), self.mesh.join(who))
            case ["deliver"]:
                self.mesh.deliver()
            case ["deliver", "without", kind]:
                self.mesh.deliver(lambda letter: name(letter.message) == kind)
            case ["fire", index, timer]:
                self.mesh.fire(int(index), timer)
            case ["crash", index]:
                self.mesh.crash(int(index))
            case ["restart", index]:
                self.mesh.restart(int(index))
                told[int(index)] = 0
            case _:
                raise ValueError(f"no such command: {command}")
        return [*spoken(self.mesh.log), *decisions(self.mesh, told)]


def spoken(log: list[Letter]) -> list[str]:
    """One line for each message, however many it went to."""
    lines: dict[tuple[int, str], list[str]] = {}
    for letter in log:
        text = f"{name(letter.message)} {describe(letter.message)}"
        lines.setdefault((letter.source, text), []).append(str(letter.target))
    return [f"{source} -> {','.join(targets)} {text}" for (source, text), targets in lines.items()]


def decisions(mesh: Mesh, told: list[int]) -> list[str]:
    return [
        f"{index} decides s{decided.sequence} {decided.certificate.digest.hex()[:6]}"
        for index, before in enumerate(told)
        for decided in mesh.decided[index][before:]
    ]


def retell(story: str) -> str:
    """The story with the answers that the code gives now."""
    teller = Teller()
    lines: list[str] = []
    for line in story.splitlines():
        if line.startswith("#"):
            lines.append(line)
        elif line.startswith("> "):
            lines += [line, *teller.tell(line.removeprefix("> "))]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_conversation_is_as_written_down(path: Path) -> None:
    story = path.read_text()
    told = retell(story)
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        path.write_text(told)
    assert told == story


def test_there_are_conversations() -> None:
    assert len(STORIES) >= 5
