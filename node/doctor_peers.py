"""What the other members say: can they reach this node, what time is it, what do they speak
(`shoal doctor`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from shoal.node.addresses import is_loopback
from shoal.node.certificates import BACKDATED_S, LEAF_LIFETIME_S, ROTATE_AFTER
from shoal.node.doctor_findings import Finding, fine, not_checked, problem, warning
from shoal.node.identity import short
from shoal.node.look import Sight
from shoal.node.look_wire import LookedBack

# Others take the leaf of a node that is so far ahead for one that is not valid yet, and a node that
# is so far behind takes theirs for that.
APART_S_MAX = BACKDATED_S
# Who is so far ahead takes the oldest leaves of others for expired.
AHEAD_S_MAX = LEAF_LIFETIME_S * (1 - ROTATE_AFTER)
CLOCK_WARNING_S = 5.0

_SET_CLOCK = "set this machine's clock (timedatectl set-ntp true does it where there is systemd)"
_SIGHTS = {
    Sight.REFUSED: "nothing listens there",
    Sight.SILENT: "nothing answers there",
    Sight.UNREACHABLE: "there is no way there",
    Sight.UNKNOWN_NAME: "that name cannot be looked up",
    Sight.NO_TLS: "what answers there is no node",
    Sight.SOMEBODY_ELSE: "somebody else answers there",
    Sight.OUT_OF_DATE: "the leaf shown there is not valid at that member's time",
    Sight.NOT_LISTED: "the mesh does not list this node as a member",
}


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What one member answered, or why it did not.

    looked: its answer; ahead_s: how far its clock is ahead of this one's; refusal: gRPC's code;
    sight: what a bare look at it saw where it gave no answer; leaf: when its leaf is valid, as
    seconds from this node's present.
    """

    node_id: bytes
    address: str
    looked: LookedBack | None = None
    ahead_s: float = 0.0
    refusal: str = ""
    sight: Sight | None = None
    leaf: tuple[float, float] | None = None

    @property
    def answers(self) -> bool:
        """Whether it is there and speaks as itself, be it an older version."""
        return self.looked is not None or self.refusal == "UNIMPLEMENTED"


def judge_peers(peers: Sequence[PeerFacts], *, alone: bool, running: bool | None) -> Finding:
    """Whether other members can be reached from here."""
    if alone:
        return fine("peers", "this node is the only member that it knows of")
    answering = [each for each in peers if each.answers]
    what = f"{len(answering)} of {len(peers)} members asked answer"
    if not peers:
        return not_checked("peers", "no address of another member is known here")
    silent = ", ".join(
        f"{short(each.node_id)} at {each.address}: {_silence(each)}"
        for each in peers
        if not each.answers
    )
    fix = "check this machine's network and firewall, and that the others run"
    if not answering and running:
        return problem("peers", f"{what} ({silent})", fix)
    if not answering:
        # Somebody has to be the first to start.
        return warning("peers", f"{what} ({silent})", f"if they should be running, {fix}")
    if len(answering) < len(peers):
        return warning("peers", f"{what} ({silent})", fix)
    return fine("peers", what)


def _silence(peer: PeerFacts) -> str:
    if peer.refusal == "PERMISSION_DENIED":
        return "it does not take this node for a member"
    if peer.sight is Sight.ANSWERS:
        return "it hangs up on this node, which it may not know as a member"
    return _SIGHTS[peer.sight] if peer.sight is not None else peer.refusal or "no answer"


def judge_clock(peers: Sequence[PeerFacts]) -> Finding:
    """Whether this machine's clock agrees with the others': the median of those who answered."""
    told = [each.ahead_s for each in peers if each.looked is not None]
    if not told:
        return _clock_of_leaves([each.leaf for each in peers if each.leaf is not None])
    ahead = median(told)
    of = f"the median of {len(told)} members" if len(told) > 1 else "one member"
    where = "behind" if ahead > 0 else "ahead of"
    what = f"this clock is {_span(abs(ahead))} {where} {of}"
    if abs(ahead) > APART_S_MAX:
        why = "it takes their certificates for not valid yet"
        if ahead < 0:
            why = "they take its certificate for not valid yet"
        if -ahead > AHEAD_S_MAX:
            why = "it takes their certificates for expired"
        return problem("clock", f"{what}, and {why}", _SET_CLOCK)
    if abs(ahead) > CLOCK_WARNING_S:
        return warning("clock", what, _SET_CLOCK)
    return fine("clock", f"{abs(ahead):.2f} s {where} {of}")


def _clock_of_leaves(leaves: Sequence[tuple[float, float]]) -> Finding:
    """What leaves tell of a clock that is so wrong that nobody can be asked."""
    early = [start for start, _ in leaves if start > 0]
    late = [-end for _, end in leaves if end < 0]
    if early:
        # A leaf begins an hour before it is made.
        behind = _span(median(early) + BACKDATED_S)
        return problem(
            "clock",
            f"this clock is {behind} or more behind: certificates of members are not valid yet",
            _SET_CLOCK,
        )
    if late:
        return problem(
            "clock",
            f"this clock is ahead by {_span(AHEAD_S_MAX)} or more: certificates of members have "
            "expired",
            _SET_CLOCK,
        )
    return not_checked("clock", "no member told its time")


def judge_protocol(
    peers: Sequence[PeerFacts], own: int, version: str, refused: Sequence[tuple[str, str]]
) -> Finding:
    """Whether all speak the same. refused: members whose links were refused for it, and why."""
    told = [(each, each.looked) for each in peers if each.looked is not None]
    newer = [f"{short(p.node_id)} has {it.protocol}" for p, it in told if it.protocol > own]
    older = [f"{short(p.node_id)} has {it.protocol}" for p, it in told if it.protocol < own]
    named = {short(each.node_id) for each in peers}
    older += [
        f"{short(each.node_id)} is too old to say"
        for each in peers
        if each.refusal == "UNIMPLEMENTED"
    ]
    others = [f"{who} was refused ({why})" for who, why in refused if who not in named]
    if not (newer or older or others):
        if not told:
            return not_checked("protocol", "no member told its version")
        versions = ", ".join(sorted({it.version for _, it in told}))
        return fine("protocol", f"all speak {own} (Shoal {versions}, here {version})")
    what = f"protocol versions differ: this node has {own}, {', '.join(newer + older + others)}"
    if newer:
        which = "upgrade Shoal on this node"
    elif older:
        which = "upgrade Shoal on " + ", ".join(each.partition(" ")[0] for each in older)
    else:
        which = "upgrade Shoal where it is older"
    same = sum(it.protocol == own for _, it in told)
    grade = warning if same > len(newer) + len(older) + len(others) else problem
    return grade("protocol", what, which)


def judge_advertised(
    peers: Sequence[PeerFacts], advertised: str, *, running: bool | None
) -> Finding:
    """Whether others reach this node at the address that the ledger has for it."""
    looks = [(each, each.looked) for each in peers if each.looked is not None]
    if not running:
        return not_checked("advertised", "this node does not run, so nothing can answer there")
    counted = [(peer, it) for peer, it in looks if it.outcome != Sight.NOT_NOW]
    if not counted:
        why = "they were asked too often; try again in 10 s" if looks else "no member answered"
        return not_checked("advertised", f"nobody could look from outside: {why}")
    listed = next((it.address for _, it in counted if it.address), "")
    if listed and listed != advertised:
        return problem(
            "advertised",
            f"the mesh knows this node as {listed}, and its settings say {advertised}",
            "restart it, so that it tells the mesh where it has moved, or set "
            f'advertise = "{listed}" under [node] and listen where that leads',
        )
    failed = [(peer, it) for peer, it in counted if it.outcome != Sight.ANSWERS]
    seen = f"{len(counted) - len(failed)} of {len(counted)} members that looked reach {advertised}"
    if not failed:
        return fine("advertised", seen)
    peer, first = failed[0]
    words = _SIGHTS.get(Sight(first.outcome)) if first.outcome in set(Sight) else first.outcome
    what = f"{seen}; seen from {short(peer.node_id)} {words}"
    grade = warning if len(failed) < len(counted) else problem
    return grade("advertised", what, _reach_fix(first.outcome, advertised))


def _reach_fix(outcome: str, advertised: str) -> str:
    if outcome == Sight.NOT_LISTED:
        return "wait until its join is ordered; if it was put out, join with a new directory"
    if outcome == Sight.OUT_OF_DATE:
        return "compare the clocks of both machines"
    if is_loopback(advertised):
        return "set advertise under [node] to an address that other machines reach, and join anew"
    return (
        "open the port in the firewall and forward it where there is NAT, or set advertise under "
        "[node] to the address that leads here"
    )


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
