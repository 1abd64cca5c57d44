"""How runs look on a terminal: rich renderables made from what runs_report.py says."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shoal.node.config import SECTIONS
from shoal.node.run_store import Run
from shoal.node.runs_report import chart, comparison, differences, losses, reference_of, summary
from shoal.node.views import duration, new_table, printable, size

SPARK_WIDTH = 16
COMPARED_WIDTH = 40
CHART_WIDTH = 72
CHART_HEIGHT = 8
CHECKPOINTS_SHOWN = 8
# What a column of `compare` says of its run, and in which words.
ROWS = (
    ("ended", "ended"),
    ("seconds", "took"),
    ("device", "device"),
    ("round", "last round"),
    ("tokens", "tokens"),
    ("loss", "loss (last 5 rounds)"),
    ("loss_at_common_tokens", "loss after {common_tokens:,} tokens"),
    ("held_out_loss", "held-out loss"),
    ("held_out_at_common_height", "held-out loss at height {common_height}"),
    ("step_seconds", "seconds a step (median)"),
    ("sent_bytes", "sent"),
    ("sent_bytes_per_token", "bytes sent per token"),
)


def runs_table(runs: Sequence[Run]) -> RenderableType:
    """One line a run, in the order they were found."""
    grid = new_table(f"runs ({len(runs)})")
    grid.add_column("run", overflow="fold")
    grid.add_column("began")
    grid.add_column("took", justify="right")
    grid.add_column("ended")
    for name in ("round", "tokens", "loss", "held-out", "height", "sent"):
        grid.add_column(name, justify="right")
    grid.add_column("loss over time", no_wrap=True)
    for run in runs:
        facts = summary(run)
        grid.add_row(
            printable(facts["run"]),
            facts["began"][:16].replace("T", " "),
            duration(facts["seconds"]),
            _ended(run),
            str(facts["round"]),
            f"{facts['tokens']:,}",
            _number(facts["loss"]),
            _number(facts["held_out_loss"]),
            str(facts["height"]),
            size(facts["sent_bytes"]),
            "".join(chart(losses(run), width=SPARK_WIDTH, height=1)),
        )
    return grid


def run_view(run: Run) -> RenderableType:
    """Everything about one run."""
    facts, began = summary(run), run.began
    after = f", after run {began.previous}" if began.previous else ""
    head = Text.assemble(
        (printable(facts["run"]), "bold"),
        printable(
            f" node {began.node} of mesh {began.mesh_id[:12]}, began {facts['began']}{after}: "
        ),
        _ended(run),
        f" ({duration(facts['seconds'])})",
    )
    parts: list[RenderableType] = [head, Text(), _facts(run, facts), Text(), _loss_chart(run)]
    if run.checkpoints:
        parts += [Text(), _checkpoints(run)]
    return Group(*parts)


def comparison_view(runs: Sequence[Run]) -> RenderableType:
    """One column a run: what came of it, then what was different."""
    records = comparison(runs)
    grid = new_table("what came of it")
    grid.add_column()
    for record in records:
        grid.add_column(printable(record["run"]), justify="right", overflow="fold")
    for key, words in ROWS:
        values = [_value(key, record[key]) for record in records]
        if any(value != "-" for value in values):
            grid.add_row(words.format(**records[0]), *values)
    different = differences(runs)
    given = (
        new_table("what was different") if different else Text("nothing was configured differently")
    )
    if isinstance(given, Table):
        given.add_column()
        for record in records:
            given.add_column(printable(record["run"]), justify="right", overflow="fold")
        for name, values in different.items():
            given.add_row(printable(name), *(printable(str(value)) for value in values))
    return Group(grid, Text(), given, Text(), *_curves(runs))


def _curves(runs: Sequence[Run]) -> list[RenderableType]:
    every = [value for run in runs for value in losses(run)]
    if not every:
        return []
    span = min(every), max(every)
    lines: list[RenderableType] = [
        Text(f"loss, each over its own rounds, from {span[0]:.3f} to {span[1]:.3f}", style="bold")
    ]
    for run in runs:
        (curve,) = chart(losses(run), width=COMPARED_WIDTH, height=1, span=span) or [""]
        lines.append(Text(f"{curve:{COMPARED_WIDTH}}  {printable(reference_of(run))}"))
    return lines


def _facts(run: Run, facts: dict[str, Any]) -> RenderableType:
    began = run.began
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    joined = [f"{name} {value}" for name, value in {**began.versions, **began.machine}.items()]
    last = run.rounds[-1].sent_bytes if run.rounds else {}
    sent = ", ".join(f"{kind} {size(count)}" for kind, count in sorted(last.items()))
    rows = {
        "training": f"round {facts['round']}, {facts['deltas_made']} deltas, "
        f"{facts['tokens']:,} tokens on {facts['device'] or 'no device'}, "
        f"loss {_number(facts['loss_first'])} → {_number(facts['loss'])}, "
        f"held-out {_number(facts['held_out_loss'])}",
        "a round": _stages(run) or "none was finished",
        "sent": sent or "nothing",
        "settings": _changed(began.settings) or "all as they are by default",
        "mesh": ", ".join(f"{name} {value:g}" for name, value in began.mesh.items()),
        "with": f"{began.parameters:,} parameters, " + ", ".join(joined),
    }
    for name, text in rows.items():
        grid.add_row(name, printable(text))
    return grid


def _stages(run: Run) -> str:
    """The mean seconds of each stage."""
    total: dict[str, float] = {}
    for row in run.rounds:
        for stage in row.stages:
            total[stage.name] = total.get(stage.name, 0.0) + stage.seconds
    return ", ".join(f"{name} {value / len(run.rounds):.3f} s" for name, value in total.items())


def _changed(settings: dict[str, Any]) -> str:
    """The settings that are not the defaults of this version."""
    defaults = {
        f"{section}.{key}": field.get_default()
        for section, model in SECTIONS.items()
        for key, field in model.model_fields.items()
    }
    changed = {
        name: value
        for name, value in settings.items()
        if name not in defaults or str(defaults[name]) != str(value)
    }
    return ", ".join(f"{name} = {value}" for name, value in changed.items())


def _loss_chart(run: Run) -> RenderableType:
    values = losses(run)
    lines = chart(values, width=CHART_WIDTH, height=CHART_HEIGHT)
    if not lines:
        return Text("no round has a loss yet", style="dim")
    text = Text("training loss by round\n", style="bold")
    for index, line in enumerate(lines):
        label = {0: f"{max(values):.3f}", len(lines) - 1: f"{min(values):.3f}"}.get(index, "")
        text.append(f"{label:>8} {line}\n", style="not bold")
    first, last = run.rounds[0].round, run.rounds[-1].round
    text.append(f"{'':8} {first:<{max(1, len(lines[0]) - len(str(last)))}}{last}", style="dim")
    return text


def _checkpoints(run: Run) -> RenderableType:
    shown = run.checkpoints[-CHECKPOINTS_SHOWN:]
    grid = new_table(f"checkpoints (the last {len(shown)} of {len(run.checkpoints)} in this run)")
    for name in ("height", "round", "signers", "deltas", "tokens", "held-out loss"):
        grid.add_column(name, justify="right")
    grid.add_column("root")
    grid.add_column("stages")
    for row in shown:
        grid.add_row(
            str(row.height),
            str(row.round),
            str(len(row.signers)),
            str(row.deltas),
            f"{row.tokens:,}",
            _number(run.held_out.get(row.height)),
            printable(row.root[:16]),
            printable(", ".join(f"{stage.name} {stage.seconds:.2f} s" for stage in row.stages)),
        )
    return grid


def _ended(run: Run) -> Text:
    if run.running:
        return Text("running", style="green")
    return Text(printable(run.how), style="" if run.how == "stopped" else "yellow")


def _value(key: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if key == "seconds":
        return duration(value)
    if key == "sent_bytes":
        return size(value)
    if "loss" in key or key.startswith("held_out"):
        return _number(value)
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
