"""How an explanation and the life of peers look on a terminal; nothing here asks or decides."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shoal.node.inspect_client import ExplainReply, PeerReply
from shoal.node.views import printable

_STYLES = {"alive": "green", "suspect": "yellow", "dead": "bold red"}


def life_table(peers: Sequence[PeerReply]) -> RenderableType:
    """One row a member: alive, suspect or dead; below it the reasons in words."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("node", "life"):
        table.add_column(name)
    for name in ("heard", "probe given", "silent", "dead after"):
        table.add_column(name, justify="right")
    table.add_column("no answer either")
    for peer in peers:
        well = peer.liveness == "alive"
        table.add_row(
            printable(peer.node_id[:8]),
            Text(printable(peer.liveness) or "unknown", style=_STYLES.get(peer.liveness, "dim")),
            "never" if peer.heard_seconds < 0 else f"{peer.heard_seconds:.1f} s ago",
            f"{peer.deadline_ms:.0f} ms",
            "-" if well else f"{peer.silent_seconds:.1f} s",
            f"{peer.timeout_seconds:.1f} s",
            printable(", ".join(each[:8] for each in peer.accusers)) or "-",
        )
    reasons = [f"{peer.node_id[:8]} {peer.liveness}: {peer.why}" for peer in peers if peer.why]
    if not reasons:
        return table
    return Group(table, Text(), Text(printable("\n".join(reasons)), style="yellow"))


def explain_view(reply: ExplainReply) -> RenderableType:
    """Who was waited for, how long, and what was left out."""
    parts: list[RenderableType] = [Text(printable(line)) for line in _story(reply)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("node", "role"):
        table.add_column(name)
    for name in ("ready after", "in the cut", "rounds", "left out"):
        table.add_column(name, justify="right")
    table.add_column("life when due")
    table.add_column("")
    for each in reply.members:
        ready = "not ready" if each.ready_seconds < 0 else f"{each.ready_seconds:.1f} s"
        rounds = f"{each.first_round} to {each.last_round}" if each.included else "-"
        table.add_row(
            printable(each.node_id[:8]),
            "validator" if each.validator else "member",
            ready if each.validator else "-",
            str(each.included),
            rounds,
            str(each.left_out or "-"),
            Text(printable(each.liveness) or "-", style=_STYLES.get(each.liveness, "dim")),
            Text("waited for", style="bold") if each.waited_for else "",
        )
    return Group(*parts, Text(), table)


def _story(reply: ExplainReply) -> list[str]:
    height = f"height {reply.height}"
    if reply.due_seconds < 0 and not reply.committed:
        return [
            f"{height} is not due yet: a quorum of {reply.quorum} validators with "
            f"{reply.rounds_wanted} deltas each is waited for"
        ]
    lines = []
    if reply.due_seconds >= 0:
        lines.append(f"{height} was due after {reply.due_seconds:.1f} s: {reply.due_why}")
    else:
        lines.append(f"{height}: this node was not looking when it became due")
    if reply.committed:
        line = f"proposed by {reply.proposer[:8]}"
        if reply.attempt:
            line += f" at attempt {reply.attempt + 1}, after others had their turn in vain"
        if reply.committed_seconds >= 0:
            took = reply.committed_seconds - max(0.0, reply.due_seconds)
            line += f", committed {took:.1f} s after it was due"
        lines.append(line)
    else:
        lines.append("it is being attested and ordered now")
    return lines
