"""How a report of `shoal doctor` looks: what to do first, then a short table of what is fine."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from shoal.node.doctor_findings import Finding, Report, Verdict

_CHECKS_WIDTH = 30
_STYLES = {Verdict.PROBLEM: "bold red", Verdict.WARNING: "yellow"}


def finding_line(finding: Finding) -> Text:
    """One line: "problem: what; fix: what to do"."""
    what = _printable(finding.what).replace(";", ",")
    return Text.assemble(
        (f"{finding.verdict}: ", _STYLES[finding.verdict]),
        what,
        ("; fix: ", "dim"),
        _printable(finding.fix),
    )


def print_report(console: Console, report: Report) -> None:
    """Print it; on a terminal lines are folded between words, elsewhere each stays one line."""
    console.print(_headline(report), soft_wrap=not console.is_terminal)
    todo = [*report.of(Verdict.PROBLEM), *report.of(Verdict.WARNING)]
    if todo and console.is_terminal:
        console.print()
        console.print(_folded(todo))
    for finding in [] if console.is_terminal else todo:
        console.print(finding_line(finding), soft_wrap=True)
    console.print()
    console.print(_table(report))
    console.print()
    console.print(_summary(report), soft_wrap=not console.is_terminal)


def _folded(findings: Sequence[Finding]) -> RenderableType:
    """The same lines, folded under themselves."""
    grid = Table.grid(padding=0)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for finding in findings:
        head, rest = finding_line(finding).divide([len(f"{finding.verdict}: ")])
        grid.add_row(head, rest)
    return grid


def _headline(report: Report) -> Text:
    if not report.directory:
        return Text("this machine, without a node's directory", style="bold")
    who = f", node {report.node_id[:8]}" if report.node_id else ""
    mesh = f" of mesh {report.mesh_id[:12]}" if report.mesh_id else ""
    state = {True: ", running", False: ", not running", None: ""}[report.running]
    return Text.assemble((_printable(report.directory), "bold"), f"{who}{mesh}{state}")


def _table(report: Report) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("fine", no_wrap=True, style="green")
    table.add_column("", overflow="fold")
    for finding in report.of(Verdict.FINE):
        table.add_row(finding.check, _printable(finding.what))
    skipped = report.of(Verdict.NOT_CHECKED)
    if not skipped:
        return table
    rest = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    rest.add_column("not checked", overflow="fold", style="dim", max_width=_CHECKS_WIDTH)
    rest.add_column("", overflow="fold", style="dim")
    # What has the same reason stands together: that a node does not run is said once.
    reasons: dict[str, list[str]] = {}
    for finding in skipped:
        reasons.setdefault(finding.what, []).append(finding.check)
    for why, checks in reasons.items():
        rest.add_row(", ".join(checks), _printable(why))
    return Group(table, Text(), rest)


def _summary(report: Report) -> Text:
    counts = {verdict: len(report.of(verdict)) for verdict in Verdict}
    text = Text()
    for verdict, word in ((Verdict.PROBLEM, "problem"), (Verdict.WARNING, "warning")):
        count = counts[verdict]
        text.append(f"{count} {word}{'' if count == 1 else 's'}", _STYLES[verdict] if count else "")
        text.append(", ")
    text.append(f"{counts[Verdict.FINE]} fine, {counts[Verdict.NOT_CHECKED]} not checked")
    text.append(f", in {report.seconds:.1f} s", "dim")
    return text


def _printable(text: str) -> str:
    # Words of other machines and names of files must not command the terminal.
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
