"""The rows of a run for TensorBoard, Weights & Biases and MLflow, behind extras.

Everything stays on this machine unless the operator asks W&B to send it. All are called in threads
of their own (recorder.py), so here they may take their time, and raise.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shoal.node.config import Settings
from shoal.node.errors import UserError
from shoal.node.recorder import Tracker
from shoal.node.run_rows import CheckpointDone, Evaluated, RoundDone, Row, RunBegan, RunEnded
from shoal.node.traces import open_traces

# Both report home how they are used, or their crashes, unless told before they load. MLflow's files
# are in maintenance, which it wants to hear is understood; its database needs the whole package.
LIBRARY_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "WANDB_ERROR_REPORTING": "false",
}


def open_trackers(settings: Settings) -> dict[str, Tracker]:
    """Load the libraries of what was chosen; raises UserError where one is missing."""
    chosen = settings.tracking
    directory = Path(chosen.directory or settings.node.directory / "tracking")
    trackers: dict[str, Tracker] = {}
    for name in dict.fromkeys(chosen.trackers):
        try:
            trackers[name] = TRACKERS[name](directory / name, settings)
        except ImportError as error:
            raise UserError(
                f"[tracking] trackers names {name}, and {error.name or error} is not installed; "
                f"run: pip install 'shoal[{name}]', or take {name} out"
            ) from None
    if (traces := open_traces()) is not None:
        trackers["otel"] = traces
    return trackers


def scalars(row: Row) -> tuple[dict[str, float], int]:
    """The numbers of a row with their names, and the round or the height that they are of."""
    match row:
        case RoundDone():
            numbers: dict[str, float | None] = {
                "train/loss": row.loss,
                "train/tokens": row.tokens_total,
                "train/step_seconds": row.seconds / max(1, row.steps),
                "train/tokens_per_second": row.tokens / max(row.seconds, 1e-9),
                "delta/bytes": row.delta_bytes,
                "delta/made": row.deltas_made,
                **{f"sent_bytes/{kind}": count for kind, count in row.sent_bytes.items()},
                **{f"seconds/{stage.name}": stage.seconds for stage in row.stages},
            }
            place = row.round
        case CheckpointDone():
            numbers = {
                "checkpoint/round": row.round,
                "checkpoint/signers": len(row.signers),
                "checkpoint/deltas": row.deltas,
                "checkpoint/delta_bytes": row.delta_bytes,
                "checkpoint/tokens": row.tokens,
                **{f"checkpoint/seconds/{stage.name}": stage.seconds for stage in row.stages},
            }
            place = row.height
        case Evaluated():
            numbers, place = {"checkpoint/held_out_loss": row.held_out_loss}, row.height
        case _:
            return {}, 0
    return {name: float(value) for name, value in numbers.items() if value is not None}, place


def description(began: RunBegan) -> dict[str, Any]:
    """What a tracker shows as the configuration of a run, by dotted name."""
    groups: dict[str, Mapping[str, Any]] = {
        "mesh": began.mesh,
        "versions": began.versions,
        "machine": began.machine,
    }
    inner = {f"{group}.{key}": value for group, of in groups.items() for key, value in of.items()}
    facts = ("node", "node_id", "mesh_id", "height", "parameters", "previous")
    return {**{name: getattr(began, name) for name in facts}, **began.settings, **inner}


def _title(began: RunBegan) -> str:
    return f"{began.node}-{began.run}"


class TensorBoard:
    """Event files, one directory a run; `tensorboard --logdir` shows them."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        del settings
        from torch.utils.tensorboard import SummaryWriter

        self._open: Callable[..., Any] = SummaryWriter
        self._directory = directory

    def write(self, row: Row) -> None:
        """Take a row."""
        if isinstance(row, RunBegan):
            self._writer = self._open(str(self._directory / _title(row)), flush_secs=10)
            text = "\n".join(f"    {key} = {value}" for key, value in description(row).items())
            self._writer.add_text("run", text, 0, walltime=row.time_s)
        numbers, place = scalars(row)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, place, walltime=row.time_s)
        if isinstance(row, CheckpointDone):
            self._writer.flush()
        elif isinstance(row, RunEnded):
            self._writer.add_text("ended", row.how, 0, walltime=row.time_s)
            self._writer.close()


class WandB:
    """Weights & Biases: files for `wandb sync`, or with wandb_online its server at once."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        os.environ.update({**LIBRARY_SETTINGS, **os.environ})
        import wandb

        self._wandb: Any = wandb
        self._directory = directory
        self._project = settings.tracking.project
        self._mode = "online" if settings.tracking.wandb_online else "offline"

    def write(self, row: Row) -> None:
        """Take a row; rounds and heights are axes of their own."""
        if isinstance(row, RunBegan):
            self._begin(row)
            return
        if isinstance(row, RunEnded):
            self._run.finish(exit_code=0 if row.how == "stopped" else 1)
            return
        numbers, place = scalars(row)
        self._run.log({**numbers, "round" if isinstance(row, RoundDone) else "height": place})

    def _begin(self, row: RunBegan) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=self._project,
            name=_title(row),
            dir=str(self._directory),
            mode=self._mode,
            config=description(row),
            # Of the node's own rows, and nothing else of this machine or of its source tree.
            settings=self._wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
            ),
        )
        for axis, names in (
            ("round", ("train/*", "delta/*", "sent_bytes/*", "seconds/*")),
            ("height", ("checkpoint/*",)),
        ):
            for name in names:
                self._run.define_metric(name, step_metric=axis)


class MLflow:
    """A store of files for `mlflow ui --backend-store-uri`."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        os.environ.update({**LIBRARY_SETTINGS, **os.environ})
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client_of: Callable[..., Any] = MlflowClient
        self._metric: Callable[..., Any] = Metric
        self._param: Callable[..., Any] = Param
        self._directory = directory
        self._project = settings.tracking.project

    def write(self, row: Row) -> None:
        """Take a row."""
        if isinstance(row, RunBegan):
            self._begin(row)
        elif isinstance(row, RunEnded):
            self._client.set_tag(self._run, "ended", row.how)
            status = "FINISHED" if row.how == "stopped" else "FAILED"
            self._client.set_terminated(self._run, status)
        else:
            numbers, place = scalars(row)
            at_ms = int(row.time_s * 1000)
            metrics = [self._metric(name, value, at_ms, place) for name, value in numbers.items()]
            self._client.log_batch(self._run, metrics=metrics)

    def _begin(self, row: RunBegan) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._client = self._client_of(tracking_uri=self._directory.resolve().as_uri())
        found = self._client.get_experiment_by_name(self._project)
        experiment = found.experiment_id if found else self._client.create_experiment(self._project)
        run = self._client.create_run(experiment, run_name=_title(row))
        self._run = run.info.run_id
        # It takes 500 characters a value and 100 values at a time.
        params = [self._param(key, str(value)[:500]) for key, value in description(row).items()]
        for first in range(0, len(params), 100):
            self._client.log_batch(self._run, params=params[first : first + 100])


TRACKERS: Mapping[str, Callable[[Path, Settings], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}
