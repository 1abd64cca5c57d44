"""The demo's report: numbers from what really ran, and a line for each thing that does not hold.

build_report only rearranges what nodes answered and evaluations returned. failures reads nothing
but the report, so whoever has report.json can judge again.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shoal.node.inspect_client import CheckpointReply, StatusReply
from shoal.node.views import printable, size

CHECKPOINTS_REQUIRED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Cross-entropy in nats per token, all on the held-out text of the union of the shards."""

    # The last certified checkpoint.
    mesh: float
    # Each shard trained alone, from the same weights for as many steps.
    solo: tuple[float, ...]
    # The genesis weights.
    start: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run of the demo left behind."""

    # The last answer of each node, in the order of their names.
    replies: tuple[StatusReply, ...]
    # SHA-256 of the anchor of the last checkpoint, read from each node's disk; "" where missing.
    anchor_files: tuple[str, ...]
    rounds_planned: int
    # From the start of `shoal join` to the newcomer's first delta; None where it made none.
    join_seconds: float | None
    losses: Losses | None
    sample: str
    seconds_by_phase: Mapping[str, float]
    environment: Mapping[str, Any]
    # What went wrong that the numbers cannot show, one line each.
    problems: tuple[str, ...] = ()


def build_report(outcome: Outcome) -> dict[str, Any]:
    """The report as it is written to report.json."""
    replies = outcome.replies
    newest = max(replies, key=_height, default=None)
    losses = outcome.losses
    return {
        "nodes": len(replies),
        "rounds": min((reply.training.round for reply in replies), default=0),
        "rounds_planned": outcome.rounds_planned,
        "local_steps": newest.training.local_steps if newest else 0,
        "seconds": round(sum(outcome.seconds_by_phase.values()), 1),
        "seconds_by_phase": {k: round(v, 1) for k, v in outcome.seconds_by_phase.items()},
        "join_seconds": _rounded(outcome.join_seconds),
        "params": newest.training.parameters if newest else 0,
        "mesh_id": newest.mesh_id if newest else "",
        "quorum": newest.consensus.quorum if newest else 0,
        "anchors_equal": anchors_equal(replies, outcome.anchor_files),
        "checkpoints": [_checkpoint(each) for each in newest.checkpoints] if newest else [],
        "loss": {
            "mesh": _finite(losses.mesh) if losses else None,
            "solo": [_finite(value) for value in losses.solo] if losses else [],
            "start": _finite(losses.start) if losses else None,
        },
        "bytes": {
            "sent_per_node": [sum(reply.sent_bytes.values()) for reply in replies],
            "delta_bits_per_kept_value": round(
                _mean([reply.gossip.bits_per_kept_value for reply in replies]), 3
            ),
            "compression_vs_fp32": round(
                _mean([reply.gossip.compression_vs_fp32 for reply in replies]), 1
            ),
        },
        "rejected": {reply.node: dict(sorted(reply.rejected.items())) for reply in replies},
        "event_loop_lag_p99_ms": [round(reply.event_loop.lag_p99_ms, 1) for reply in replies],
        "computing_share": [round(reply.training.computing_share, 3) for reply in replies],
        "problems": list(outcome.problems),
        "sample": outcome.sample,
        "environment": dict(outcome.environment),
    }


def anchors_equal(replies: Sequence[StatusReply], anchor_files: Sequence[str]) -> bool:
    """Whether the nodes hold one model: at every height one root, rebuilt by everybody at the
    last height, and the anchors on their disks the same file."""
    roots: dict[int, set[str]] = {}
    for reply in replies:
        for each in reply.checkpoints:
            roots.setdefault(each.height, set()).add(each.root)
    if not roots or any(len(different) != 1 for different in roots.values()):
        return False
    last = max(roots)
    rebuilt = all(
        any(each.height == last and each.materialised for each in reply.checkpoints)
        for reply in replies
    )
    return rebuilt and len(set(anchor_files)) == 1 and anchor_files[0] != ""


def failures(report: Mapping[str, Any]) -> list[str]:
    """What the demo promises and this report does not show; one line each, empty when all holds."""
    found = list(report["problems"])
    if report["rounds"] < report["rounds_planned"]:
        found.append(f"a node made only {report['rounds']} of {report['rounds_planned']} rounds")
    quorum = report["quorum"]
    certified = [each for each in report["checkpoints"] if each["signatures"] >= quorum > 0]
    if len(certified) < CHECKPOINTS_REQUIRED:
        found.append(
            f"{len(certified)} checkpoints carry {quorum} or more signatures, "
            f"{CHECKPOINTS_REQUIRED} are required"
        )
    if not report["anchors_equal"]:
        found.append("the nodes' anchors are not equal")
    mesh, solo = report["loss"]["mesh"], report["loss"]["solo"]
    if mesh is None or None in solo or not 0 < len(solo) == report["nodes"]:
        found.append("the losses could not be measured")
    elif not mesh < min(solo):
        best = min(solo)
        found.append(f"the mesh's loss {mesh} is not below the best shard's alone, {best}")
    return found


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write it whole or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def report_view(report: Mapping[str, Any]) -> RenderableType:
    """The report as tables."""
    return Group(
        Text(),
        _summary(report),
        Text(),
        _checkpoints(report),
        Text(),
        _losses(report),
        Text(),
        Text("sample of the mesh's model", style="bold"),
        Text(printable(report["sample"]) or "(none)"),
        Text(),
        *[Text(f"FAILED: {line}", style="bold red") for line in failures(report)],
    )


def _summary(report: Mapping[str, Any]) -> RenderableType:
    sent = report["bytes"]["sent_per_node"]
    bits = report["bytes"]["delta_bits_per_kept_value"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    steps = report["rounds"] * report["local_steps"]
    grid.add_row("nodes", f"{report['nodes']}, each {report['rounds']} rounds = {steps} steps")
    grid.add_row("model", f"{report['params']:,} parameters")
    grid.add_row("time", f"{report['seconds']:.0f} s: {_phases(report)}")
    if report["join_seconds"] is not None:
        grid.add_row(
            "a newcomer", f"{report['join_seconds']:.1f} s from `shoal join` to its first delta"
        )
    grid.add_row("anchors equal", "yes, bit for bit" if report["anchors_equal"] else "NO")
    grid.add_row(
        "sent per node",
        f"{', '.join(size(count) for count in sent)}; {bits:.2f} bits per kept value, "
        f"{report['bytes']['compression_vs_fp32']:.0f} times smaller than fp32",
    )
    return grid


def _phases(report: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.0f} s" for name, value in report["seconds_by_phase"].items())


def _checkpoints(report: Mapping[str, Any]) -> RenderableType:
    table = _table(f"certified checkpoints (quorum {report['quorum']})")
    for name in ("height", "round", "signatures", "view"):
        table.add_column(name, justify="right")
    table.add_column("root")
    for each in report["checkpoints"]:
        table.add_row(
            str(each["height"]),
            str(each["round"]),
            str(each["signatures"]),
            str(each["view"]),
            each["root"][:32],
        )
    return table


def _losses(report: Mapping[str, Any]) -> RenderableType:
    table = _table("loss on the held-out text of all shards, nats per byte")
    table.add_column("trained on")
    table.add_column("loss", justify="right")
    loss = report["loss"]
    table.add_row("nothing (start)", _loss(loss["start"]))
    for index, value in enumerate(loss["solo"]):
        table.add_row(f"shard {index} alone, as many steps", _loss(value))
    table.add_row(Text("the mesh", style="bold"), Text(_loss(loss["mesh"]), style="bold"))
    return table


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        min_width=len(title),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )


def _loss(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _checkpoint(each: CheckpointReply) -> dict[str, Any]:
    return {
        "height": each.height,
        "round": each.round,
        "root": each.root,
        "signatures": each.signatures,
        "view": each.view,
        "deltas": each.deltas,
        "tokens": each.tokens,
        "record": each.record,
    }


def _height(reply: StatusReply) -> int:
    return max((each.height for each in reply.checkpoints), default=0)


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 2) if seconds is not None else None


def _finite(value: float) -> float | None:
    """A loss to four places; JSON has no word for one that is not a number, and it is no loss."""
    return round(value, 4) if math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
