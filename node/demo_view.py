"""The demo while it runs: a table for a terminal, a line for a log."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shoal.node.inspect_client import StatusReply
from shoal.node.views import duration, loss, printable, size


@dataclass(frozen=True, slots=True)
class Row:
    """One node: its last answer, if it ever gave one, and how it died, if it did."""

    name: str
    reply: StatusReply | None
    death: str = ""


def progress_view(rows: Sequence[Row], *, rounds: int, elapsed_s: float) -> RenderableType:
    """One row a node, and a line of facts about the mesh."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("node")
    for name in ("round", "loss", "neighbours", "sent", "received", "checkpoint", "signatures"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for row in rows:
        table.add_row(*_cells(row, rounds))
    return Group(table, Text(), Text(mesh_facts(rows, elapsed_s=elapsed_s)))


def progress_line(rows: Sequence[Row], *, rounds: int, elapsed_s: float) -> str:
    """The same in one line."""
    replies = [row.reply for row in rows if row.reply is not None]
    if not replies:
        return f"{elapsed_s:4.0f} s  starting {len(rows)} nodes"
    made = " ".join(
        "dead" if row.death else str(row.reply.training.round) if row.reply else "-" for row in rows
    )
    losses = " ".join(loss(reply.training.loss) for reply in replies)
    newest = max(replies, key=_height)
    signatures = newest.checkpoints[-1].signatures if newest.checkpoints else 0
    sent = size(sum(sum(reply.sent_bytes.values()) for reply in replies))
    return (
        f"{elapsed_s:4.0f} s  rounds {made} of {rounds}  loss {losses}  "
        f"checkpoint {_height(newest)} ({signatures} signatures)  sent {sent}"
    )


def mesh_facts(rows: Sequence[Row], *, elapsed_s: float) -> str:
    """What holds for the mesh and not for one node."""
    replies = [row.reply for row in rows if row.reply is not None]
    if not replies:
        return f"{duration(elapsed_s)}, starting {len(rows)} processes"
    newest = max(replies, key=_height)
    consensus = newest.consensus
    bits = [reply.gossip.bits_per_kept_value for reply in replies if reply.training.round]
    facts = [
        duration(elapsed_s),
        f"mesh {newest.mesh_id[:12]}",
        f"{newest.training.parameters:,} parameters",
        f"quorum {consensus.quorum} of {consensus.validators}, "
        f"tolerates {consensus.byzantine_tolerance}",
        f"view {consensus.view}",
    ]
    if bits:
        facts.append(f"{sum(bits) / len(bits):.2f} bits per kept value")
    if newest.checkpoints:
        facts.append(_agreement(replies))
    return ", ".join(facts)


def _agreement(replies: Sequence[StatusReply]) -> str:
    """Whether the nodes' roots agree, at every height that two of them know."""
    roots: dict[int, set[str]] = {}
    for reply in replies:
        for each in reply.checkpoints:
            roots.setdefault(each.height, set()).add(each.root)
    different = sorted(height for height, seen in roots.items() if len(seen) > 1)
    if different:
        return f"ROOTS DIFFER at checkpoint {different[0]}"
    return f"all {len(roots)} roots equal"


def _cells(row: Row, rounds: int) -> list[RenderableType]:
    state = _state(row)
    if row.reply is None:
        return [row.name, *["-"] * 7, state]
    reply = row.reply
    connected = sum(peer.state == "connected" for peer in reply.peers)
    last = reply.checkpoints[-1] if reply.checkpoints else None
    return [
        row.name,
        f"{reply.training.round}/{rounds}",
        loss(reply.training.loss),
        str(connected),
        size(sum(reply.sent_bytes.values())),
        size(sum(reply.received_bytes.values())),
        str(last.height) if last else "-",
        str(last.signatures) if last else "-",
        state,
    ]


def _state(row: Row) -> Text:
    if row.death:
        return Text(f"died: {row.death}", style="bold red")
    if row.reply is None:
        return Text("starting", style="dim")
    state = row.reply.training.state
    if state.startswith("failed"):
        return Text(printable(state), style="bold red")
    return Text(printable(state), style="green" if state == "finished" else "")


def _height(reply: StatusReply) -> int:
    return reply.checkpoints[-1].height if reply.checkpoints else 0
