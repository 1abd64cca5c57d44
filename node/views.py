"""How a node's state looks on a terminal: rich renderables made from one StatusReply.

Nothing here asks a node, measures or decides; it only lays out what the reply says. Colour marks
what a person should look at, and rich drops it where the output is not a terminal.
"""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from shoal.node.inspect_client import CheckpointReply, PeerReply, StatusReply

PLAIN_WIDTH = 120
_LAG_WARNING_MS = 100.0
_BY = {
    "evidence": "evidence that proves itself",
    "people": "decision of a quorum",
    "harm": "opinion of a quorum that measured harm",
}


def make_console(*, stderr: bool = False) -> Console:
    """A console that is wide enough to pipe from where there is no terminal to measure."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def status_view(reply: StatusReply) -> RenderableType:
    """Everything about one node: who it is, what it does, what it holds, whom it talks to."""
    parts: list[RenderableType] = [_headline(reply)]
    parts += [Text(printable(warning), style="bold red") for warning in reply.warnings]
    for part in (
        _facts(reply),
        checkpoints_table(reply.checkpoints[-5:], total=len(reply.checkpoints)),
        peers_table(reply.peers),
        _bytes_table(reply),
        _rejected_line(reply),
        *_harm_lines(reply),
    ):
        parts += [Text(), part]
    return Group(*parts)


def fitted(view: RenderableType, console: Console) -> RenderableType:
    """The view on one screen: what does not fit is left out, and said to be."""
    lines = console.render_lines(view, pad=False)
    if len(lines) <= console.height:
        return view
    room = console.height - 1
    kept = [each for line in lines[:room] for each in (*line, Segment.line())]
    note = f"{len(lines) - room} more lines: make the window taller, or leave --watch out"
    return Group(Segments(kept), Text(note, style="dim"))


def checkpoints_table(checkpoints: Sequence[CheckpointReply], *, total: int) -> RenderableType:
    """One row a committed checkpoint, oldest first."""
    if not checkpoints:
        return Text("no checkpoint has been committed yet", style="dim")
    shown = f"the last {len(checkpoints)} of {total}" if total > len(checkpoints) else str(total)
    table = new_table(f"checkpoints ({shown})")
    for name in ("height", "round", "signatures", "view", "deltas", "tokens", "held-out loss"):
        table.add_column(name, justify="right")
    table.add_column("root")
    table.add_column("rebuilt here")
    for each in checkpoints:
        table.add_row(
            str(each.height),
            str(each.round),
            str(each.signatures),
            str(each.view),
            str(each.deltas),
            f"{each.tokens:,}",
            f"{each.held_out_loss:.4f}" if each.held_out_loss else "-",
            printable(each.root[:16]),
            Text("equal", style="green") if each.materialised else Text("not yet", style="yellow"),
        )
    return table


def peers_table(peers: Sequence[PeerReply]) -> RenderableType:
    """One row a peer, connected ones first."""
    if not peers:
        return Text("no peers known", style="yellow")
    connected = sum(peer.state == "connected" for peer in peers)
    table = new_table(f"peers ({connected} of {len(peers)} connected)")
    table.add_column("node")
    table.add_column("address")
    table.add_column("state")
    for name in ("round trip", "sent", "received", "last delta", "height"):
        table.add_column(name, justify="right")
    table.add_column("role")
    for peer in sorted(peers, key=lambda each: (each.state != "connected", each.node_id)):
        good = peer.state == "connected"
        table.add_row(
            printable(peer.node_id[:8]),
            printable(peer.address),
            Text(printable(peer.state), style="green" if good else "yellow"),
            f"{peer.round_trip_ms:.1f} ms" if good else "-",
            size(peer.sent_bytes),
            size(peer.received_bytes),
            str(peer.last_sequence),
            str(peer.committed_height),
            "validator" if peer.validator else "member",
        )
    errors = [f"{peer.node_id[:8]}: {peer.last_error}" for peer in peers if peer.last_error]
    return Group(table, Text(printable("\n".join(errors)), style="yellow")) if errors else table


def printable(text: str) -> str:
    """Text of another machine without what would command the terminal (escape sequences)."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for each in text
    )


def size(count: float) -> str:
    """Bytes in the unit that a person would choose, decimal as networks count."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 05 s or 12 s."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def loss(value: float) -> str:
    """A loss, or a dash before the first one is known."""
    return f"{value:.3f}" if value else "-"


def new_table(title: str) -> Table:
    """A table that looks as all of them do."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        min_width=len(title),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )


def _headline(reply: StatusReply) -> Text:
    text = Text(printable(reply.node) or "node", style="bold")
    facts = (
        f" {reply.node_id[:12]} at {reply.address}: {reply.role} of mesh {reply.mesh_id[:12]}, "
        f"Shoal {reply.version}, up {duration(reply.uptime_seconds)}"
    )
    return Text.assemble(text, printable(facts))


def _facts(reply: StatusReply) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("training", _training_facts(reply))
    grid.add_row("gossip", _gossip_facts(reply))
    grid.add_row("consensus", _consensus_facts(reply))
    grid.add_row("event loop", _loop_facts(reply))
    return grid


def _training_facts(reply: StatusReply) -> Text:
    training = reply.training
    end = f" of {training.max_rounds}" if training.max_rounds else ""
    device = printable(training.device) or "no device"
    failed = training.state.startswith("failed")
    text = Text()
    text.append(printable(training.state) or "unknown", style="bold red" if failed else "")
    text.append(
        f", round {training.round}{end} ({training.local_steps} steps each), "
        f"loss {loss(training.loss)}"
        f", {training.tokens_per_second:,.0f} tokens/s on {device}"
        f" ({training.computing_share:.1%} of the time computing)\n"
        f"{training.parameters:,} parameters, {training.tokens:,} tokens seen, shard of "
        f"{training.shard_tokens:,}, residual norm {training.residual_norm:.3g}"
    )
    return text


def _gossip_facts(reply: StatusReply) -> str:
    gossip = reply.gossip
    return (
        f"{gossip.pending_deltas} deltas pending, {gossip.missing_deltas} missing, "
        f"{gossip.bits_per_kept_value:.2f} bits per kept value, "
        f"{gossip.compression_vs_fp32:.0f} times smaller than fp32\n"
        f"gain {gossip.alpha:.3f}, weight {gossip.weight:.3f}, "
        f"{gossip.kept_per_chunk} of 4096 values kept"
    )


def _consensus_facts(reply: StatusReply) -> Text:
    consensus = reply.consensus
    text = Text(f"epoch {consensus.epoch}, view {consensus.view} ")
    if consensus.view_active:
        text.append("active", style="green")
    else:
        text.append("changing", style="yellow")
    text.append(
        f", executed {consensus.last_executed} (stable from {consensus.low_watermark}), "
        f"{consensus.pending_operations} pending\n"
        f"{consensus.members} members, {consensus.validators} validators, quorum "
        f"{consensus.quorum}, tolerates {consensus.byzantine_tolerance} faulty"
    )
    return text


def _loop_facts(reply: StatusReply) -> Text:
    lag = reply.event_loop
    late = lag.lag_p99_ms > _LAG_WARNING_MS
    return Text(
        f"late by {lag.lag_p50_ms:.1f} ms (half), {lag.lag_p99_ms:.1f} ms (99 %), "
        f"{lag.lag_max_ms:.1f} ms (worst); memory {size(reply.resident_memory_bytes)}",
        style="yellow" if late else "",
    )


def _bytes_table(reply: StatusReply) -> RenderableType:
    kinds = sorted({*reply.sent_bytes, *reply.received_bytes})
    if not kinds:
        return Text("nothing sent or received yet", style="dim")
    # Reading an absent key of a protobuf map would add it, hence the copies.
    sent, received = dict(reply.sent_bytes), dict(reply.received_bytes)
    table = new_table("payload bytes by kind")
    table.add_column("kind")
    table.add_column("sent", justify="right")
    table.add_column("received", justify="right")
    for kind in kinds:
        table.add_row(printable(kind), size(sent.get(kind, 0)), size(received.get(kind, 0)))
    table.add_section()
    table.add_row("all", size(sum(sent.values())), size(sum(received.values())))
    return table


def _rejected_line(reply: StatusReply) -> RenderableType:
    if not reply.rejected:
        return Text("rejected from peers: nothing", style="dim")
    counts = ", ".join(f"{reason} {reply.rejected[reason]}" for reason in sorted(reply.rejected))
    return Text(f"rejected from peers: {printable(counts)}", style="yellow")


def _harm_lines(reply: StatusReply) -> list[RenderableType]:
    """Who is out for good and why, and whom this node has found harmful; often nothing."""
    lines = [
        f"evicted: {each.node_id[:8]}, by {_BY.get(each.why, each.why)}" for each in reply.evicted
    ]
    lines += [
        f"spot checks: {peer.node_id[:8]} has harmed the model, strikes: {peer.strikes}"
        for peer in reply.peers
        if peer.strikes
    ]
    return [Text(printable("\n".join(lines)), style="yellow")] if lines else []
