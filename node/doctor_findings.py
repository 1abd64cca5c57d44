"""What `shoal doctor` finds: one finding for each check, and the report that they make.

The names of checks and the shape of the JSON are what programs rely on (docs/doctor.md): names are
added and never changed, and a change that a reader could stumble over raises SCHEMA.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shoal import __version__
from shoal.node.errors import OK, PROBLEMS, WARNINGS, UserError

SCHEMA = 1
# In the order in which they are shown.
CHECKS = (
    "configuration",
    "directory",
    "key",
    "key-backup",
    "votes",
    "genesis",
    "data",
    "disk-space",
    "file-system",
    "fsync",
    "python",
    "libraries",
    "sqlite",
    "protobuf",
    "signatures",
    "memory",
    "shared-memory",
    "open-files",
    "torch",
    "device",
    "node",
    "listen",
    "join",
    "inspect",
    "metrics",
    "peers",
    "clock",
    "protocol",
    "advertised",
    "quorum",
    "commits",
    "training",
)


class Verdict(StrEnum):
    """How a check ended."""

    FINE = "fine"
    WARNING = "warning"
    PROBLEM = "problem"
    # What it needs was not there, so nobody knows.
    NOT_CHECKED = "not-checked"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. what: what was seen; fix: what to do about it, for warnings and problems."""

    check: str
    verdict: Verdict
    what: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.check in CHECKS, f"a check without a name: {self.check}"
        needs_fix = self.verdict in (Verdict.WARNING, Verdict.PROBLEM)
        assert bool(self.fix) == needs_fix, f"{self.check}: {self.verdict} with fix {self.fix!r}"


def fine(check: str, what: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Verdict.FINE, what)


def warning(check: str, what: str, fix: str) -> Finding:
    """It works, and should not stay so."""
    return Finding(check, Verdict.WARNING, what, fix)


def problem(check: str, what: str, fix: str) -> Finding:
    """The node does not start, or does not do its part."""
    return Finding(check, Verdict.PROBLEM, what, fix)


def not_checked(check: str, why: str) -> Finding:
    """Nobody could look."""
    return Finding(check, Verdict.NOT_CHECKED, why)


def from_error(check: str, error: UserError, fix: str) -> Finding:
    """An error of one line as a problem; what stands after its first semicolon is the fix."""
    what, _, own_fix = " ".join(str(error).split()).partition("; ")
    return problem(check, what, own_fix or fix)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found. running: whether this node runs now; None where nobody knows."""

    directory: str
    node_id: str
    mesh_id: str
    running: bool | None
    seconds: float
    findings: Sequence[Finding]

    def of(self, verdict: Verdict) -> list[Finding]:
        """The findings of this verdict, in the order of CHECKS."""
        found = [each for each in self.findings if each.verdict is verdict]
        return sorted(found, key=lambda each: CHECKS.index(each.check))

    def exit_code(self, *, strict: bool) -> int:
        """What a script is told."""
        if self.of(Verdict.PROBLEM):
            return PROBLEMS
        return WARNINGS if strict and self.of(Verdict.WARNING) else OK

    def as_plain(self, *, strict: bool) -> dict[str, Any]:
        """The report for `--json`."""
        ordered = sorted(self.findings, key=lambda each: CHECKS.index(each.check))
        return {
            "schema": SCHEMA,
            "shoal": __version__,
            "directory": self.directory,
            "node_id": self.node_id,
            "mesh_id": self.mesh_id,
            "running": self.running,
            "seconds": round(self.seconds, 3),
            "exit_code": self.exit_code(strict=strict),
            "counts": {str(each): len(self.of(each)) for each in Verdict},
            "findings": [
                {
                    "check": each.check,
                    "verdict": str(each.verdict),
                    "what": each.what,
                    "fix": each.fix,
                }
                for each in ordered
            ],
        }
