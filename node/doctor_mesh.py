"""What the running node says of the mesh: a quorum, commits, training (`shoal doctor`)."""

from collections.abc import Collection
from dataclasses import dataclass

from shoal.node.doctor_findings import Finding, fine, problem, warning

# A commit that is due and has not come for so many times its usual interval, and at least so long.
LATE_TIMES, LATE_S_LEAST = 10.0, 120.0
# So long after its start a node that has few links is no sign of anything.
LINKS_S = 30.0


@dataclass(frozen=True, slots=True)
class MeshFacts:
    """From the node's status. reachable: validators with a link, and this node if it is one;
    missing: the others, named; commit_s: seconds since the last commit, negative where none was
    seen; round_s: what a round takes here, 0 where nobody knows."""

    role: str
    validators: int
    quorum: int
    reachable: int
    missing: tuple[str, ...]
    view_active: bool
    commit_s: float
    uptime_s: float
    rounds_per_checkpoint: int
    round_s: float
    training: str


def judge_quorum(facts: MeshFacts, silent: Collection[str] = ()) -> Finding:
    """Whether enough validators are there for anything to be decided. silent: members that were
    asked and gave no answer, named; a young node's links to the others may still be made."""
    what = (
        f"{facts.reachable} of {facts.validators} validators can be reached, quorum {facts.quorum}"
    )
    names = ", ".join(facts.missing[:4]) + (", ..." if len(facts.missing) > 4 else "")
    fix = f"start the missing ones or repair the way to them: {names}" if names else "see peers"
    to_come = sum(each not in silent for each in facts.missing)
    young = facts.uptime_s < LINKS_S and facts.reachable + to_come >= facts.quorum
    if facts.reachable < facts.quorum and young:
        return warning(
            "quorum",
            f"{what}; it started {facts.uptime_s:.0f} s ago and may still be making its links",
            "ask again in a minute",
        )
    if facts.reachable < facts.quorum:
        return problem("quorum", f"{what}: nothing can be decided from here", fix)
    if facts.missing and facts.reachable == facts.quorum:
        return warning("quorum", f"{what}: one more, and nothing can be decided", fix)
    if facts.role == "joining":
        return warning(
            "quorum",
            f"{what}; the mesh has not taken this node in yet",
            "wait a minute; if it stays so, see `shoal peers` and the node's log",
        )
    return fine("quorum", what)


def judge_commits(facts: MeshFacts) -> Finding:
    """Whether checkpoints are being committed."""
    seen = facts.commit_s >= 0
    since = facts.commit_s if seen else facts.uptime_s
    what = f"{since:.0f} s since the last commit"
    if not seen:
        what = f"no commit since this node started {since:.0f} s ago"
    if not facts.view_active:
        what += ", and the view is changing"
    if facts.training != "training":
        return fine("commits", f"{what}; this node waits for none")
    usual = facts.rounds_per_checkpoint * facts.round_s
    limit = max(LATE_S_LEAST, LATE_TIMES * usual)
    if since > limit:
        return warning(
            "commits",
            f"{what}, usual is about {usual:.0f} s" if usual else what,
            "see who is waited for: shoal explain ROUND, and shoal peers",
        )
    return fine("commits", what)


def judge_training(facts: MeshFacts) -> Finding:
    """Whether this node trains, if it should."""
    if facts.training.startswith("failed"):
        return problem(
            "training", f"training has {facts.training}", "put right what it names, and restart"
        )
    return fine("training", facts.training or "unknown")
