"""Pictures of simulated runs: needs matplotlib (the extra `plots`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.node.errors import UserError

WIDTH, HEIGHT = 7.6, 4.2
NEEDED = "plots need matplotlib; install it with: pip install 'shoal[plots]'"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UserError(NEEDED) from None
    # Files only: there may be no screen.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def require_matplotlib() -> None:
    """Raise UserError where there is none, before anything long begins."""
    _pyplot()


def plot_run(rows: Sequence[Mapping[str, Any]], title: str, directory: Path) -> list[Path]:
    """Loss against virtual time, and consensus distance against rounds, of one run."""
    times = [row["time"] for row in rows]
    losses = {
        "mean of the models": [row["loss_mean"] for row in rows],
        "single models": [row["loss_individual"] for row in rows],
    }
    loss = plot_lines(
        directory / "loss.png",
        {name: (times, values) for name, values in losses.items()},
        title=title,
        x="time, in rounds of an ordinary peer",
        y="held-out loss, nats per character",
    )
    distance = [row["consensus"] for row in rows]
    consensus = plot_lines(
        directory / "consensus.png",
        {"models": ([row["round"] for row in rows], distance)},
        title=title,
        x="round",
        y="root mean square distance to the mean model",
    )
    return [loss, consensus]


def plot_lines(
    path: Path,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = False,
) -> Path:
    """Write one picture with a line for each name; returns its path."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    for place, (name, (xs, ys)) in enumerate(lines.items()):
        # Dashed every other one, so that lines that lie on each other are both seen.
        style = "--" if place % 2 else "-"
        marker = "o" if markers else None
        axes.plot(xs, ys, style, label=name, linewidth=1.6, marker=marker, markersize=4)
    if log_x:
        shown = sorted({x for xs, _ in lines.values() for x in xs})
        axes.set_xscale("log", base=2)
        axes.set_xticks(shown, [f"{x:g}" for x in shown])
    if log_y:
        axes.set_yscale("log")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(visible=True, alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(lines) > 1:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
