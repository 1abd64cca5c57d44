"""Each tracker's own library reads back what was written for it."""

import logging
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from shoal.node.config import Settings, load_settings
from shoal.node.errors import UserError
from shoal.node.traces import trace_of_cut
from shoal.node.trackers import open_trackers
from tests.node.example_runs import began, whole_run

pytestmark = [
    # Of the libraries themselves, at their import and in their stores.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _nobody_asks_for_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith(("OTEL_", "WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


def settings_for(directory: Path, *trackers: str) -> Settings:
    return load_settings(
        None, {"tracking.trackers": list(trackers), "tracking.directory": str(directory)}
    )


def track(directory: Path, name: str) -> Path:
    """Tell one tracker of a whole run; returns where it writes."""
    (tracker,) = open_trackers(settings_for(directory, name)).values()
    for row in whole_run():
        tracker.write(row)
    return directory / name


def test_tensorboard_reads_the_run_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(track(tmp_path, "tensorboard") / "node0-000001"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [each.step for each in losses] == list(range(1, 9))
    assert losses[3].value == pytest.approx(1.25)
    assert [each.value for each in events.Scalars("checkpoint/held_out_loss")] == [4.0, 2.0]
    assert events.Scalars("sent_bytes/delta")[-1].value == 12_000
    assert b"train.batch = 8" in events.Tensors("run/text_summary")[0].tensor_proto.string_val[0]


def test_mlflow_reads_the_run_back(tmp_path: Path) -> None:
    store = track(tmp_path, "mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.as_uri())
    experiment = client.get_experiment_by_name("shoal")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "node0-000001"
    assert run.data.params["train.batch"] == "8"
    assert run.data.params["mesh.learning_rate"] == "0.001"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(each.step, each.value) for each in history] == [(n, 5.0 / n) for n in range(1, 9)]
    assert run.data.metrics["checkpoint/held_out_loss"] == 2.0


def records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a log of LevelDB's kind after a header of 7 bytes."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        _, size, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + size > len(data):
            return
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768


def test_wandb_offline_keeps_the_run_in_a_file_of_its_own(tmp_path: Path) -> None:
    (path,) = track(tmp_path, "wandb").glob("wandb/offline-run-*/*.wandb")
    from wandb.proto import wandb_internal_pb2

    # A process of W&B's own writes it, and may finish a moment after `finish`.
    until = time.monotonic() + 60
    parsed: list[Any] = []
    while not any(each.HasField("exit") for each in parsed):
        assert time.monotonic() < until, "W&B never finished its file"
        time.sleep(0.05)
        parsed = [wandb_internal_pb2.Record.FromString(record) for record in records(path)]
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in each.history.item}
        for each in parsed
        if each.HasField("history")
    ]
    losses = [float(row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [5.0 / number for number in range(1, 9)]
    assert [row["round"] for row in rows if "train/loss" in row] == [str(n) for n in range(1, 9)]
    (run,) = [each.run for each in parsed if each.HasField("run")]
    assert run.project == "shoal" and run.display_name == "node0-000001"


class _Collector(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return None


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An OTLP collector: its address, and what it was sent."""
    server = HTTPServer(("127.0.0.1", 0), _Collector)
    server.received = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.received  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_collector_gets_a_trace_of_each_round_and_each_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with collector() as (address, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "site=bridge")
        (traces,) = open_trackers(settings_for(tmp_path)).values()
        for row in whole_run():
            traces.write(row)
    assert {path for path, _ in received} == {"/v1/traces"}
    resources = [
        resource
        for _, body in received
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
    ]
    about = {each.key: each.value.string_value for each in resources[0].resource.attributes}
    assert about["service.name"] == "shoal" and about["site"] == "bridge"
    assert about["service.instance.id"] == began().node_id
    spans = [span for each in resources for scope in each.scope_spans for span in scope.spans]
    roots = [span for span in spans if not span.parent_span_id]
    assert [span.name for span in roots].count("round") == 8
    assert len({span.trace_id for span in roots}) == 10, "each has a trace of its own"
    cut = next(span for span in roots if span.name == "cut")
    facts = {each.key: each.value.int_value for each in cut.attributes}
    assert (facts["shoal.height"], facts["shoal.round"], facts["shoal.delta_bytes"]) == (1, 4, 8000)
    assert cut.trace_id == trace_of_cut(began().mesh_id, 1).to_bytes(16, "big")
    stages = [span for span in spans if span.parent_span_id == cut.span_id]
    assert [span.name for span in stages] == ["check", "order", "commit"]
    assert stages[0].start_time_unix_nano == cut.start_time_unix_nano
    assert stages[-1].end_time_unix_nano == cut.end_time_unix_nano
    took_s = (stages[0].end_time_unix_nano - stages[0].start_time_unix_nano) / 1e9
    assert took_s == pytest.approx(0.2, abs=1e-3)


def test_a_collector_that_is_away_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    (traces,) = open_trackers(settings_for(tmp_path)).values()
    exporter = logging.getLogger("opentelemetry.exporter")
    with capture_logs() as lines:
        traces.write(began())
        for _ in range(3):
            exporter.warning("Transient error\nconnection refused")
    traces.write(whole_run()[-1])
    assert [line["event"] for line in lines] == ["traces.failing"]
    assert "\n" not in lines[0]["why"]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_SERVICE_NAME": "shoal"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_traced_where_nobody_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert open_trackers(settings_for(tmp_path)) == {}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_library_is_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in [
        m for m in sys.modules if m.split(".")[0] == name or m.startswith("torch.utils.tens")
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"pip install 'shoal\\[{name}\\]'"):
        open_trackers(settings_for(tmp_path, name))
    assert not list(tmp_path.iterdir())
