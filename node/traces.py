"""The stages of rounds and cuts as OpenTelemetry traces, where the environment asks for them.

Spans are made from finished rows, so nothing on the way of a round knows of them, and without an
OTEL_* variable that names an exporter not even the library is loaded. All nodes give the same cut
the same trace id, so that a collector shows what each did for it in one picture, although no
context travels between them.
"""

import hashlib
import logging
import os
import secrets
from collections.abc import Sequence
from typing import Any

import structlog

from shoal.node.errors import one_line
from shoal.node.run_rows import CheckpointDone, RoundDone, Row, RunBegan, RunEnded, Stage

log = structlog.get_logger()

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
FLUSH_MS = 3000


def wanted() -> bool:
    """Whether the environment names an OTLP exporter for traces."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return exporter == "otlp" or (not exporter and any(map(os.environ.get, ENDPOINTS)))


def open_traces() -> "Traces | None":
    """The tracker that exports spans; None where nobody asked, or the library is missing.

    The variables may be meant for other programs of this machine, so the node starts without.
    """
    if not wanted():
        return None
    try:
        return Traces(_exporter())
    except ImportError as error:
        why = f"OTEL_* variables ask for traces, and {error.name} is not installed"
        log.warning("traces.off", why=f"{why}; run: pip install 'shoal[otel]'")
        return None


def _exporter() -> Any:
    protocol = next(filter(None, map(os.environ.get, PROTOCOLS)), "http/protobuf")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_exporter

        return grpc_exporter.OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_exporter

    return http_exporter.OTLPSpanExporter()


class Traces:
    """Makes one trace of each round and each cut."""

    def __init__(self, exporter: Any) -> None:
        """exporter: an OpenTelemetry SpanExporter."""
        # What is missing has to be missed at the start.
        import opentelemetry.sdk.trace.export  # noqa: F401

        self._exporter = exporter

    def write(self, row: Row) -> None:
        """Take a row."""
        match row:
            case RunBegan():
                self._begin(row)
            case RoundDone():
                self._ids.next_trace = secrets.randbits(128)
                self._trace(
                    "round",
                    row.stages,
                    {
                        "shoal.round": row.round,
                        "shoal.height": row.height,
                        "shoal.delta_bytes": row.delta_bytes,
                        "shoal.tokens": row.tokens,
                        "shoal.steps": row.steps,
                        **({"shoal.loss": row.loss} if row.loss is not None else {}),
                    },
                )
            case CheckpointDone():
                self._ids.next_trace = trace_of_cut(self._mesh_id, row.height)
                self._trace(
                    "cut",
                    row.stages,
                    {
                        "shoal.height": row.height,
                        "shoal.round": row.round,
                        "shoal.delta_bytes": row.delta_bytes,
                        "shoal.deltas": row.deltas,
                        "shoal.signatures": len(row.signers),
                        "shoal.view": row.view,
                        "shoal.root": row.root,
                    },
                )
            case RunEnded():
                self._provider.force_flush(FLUSH_MS)
                self._provider.shutdown()

    def _begin(self, row: RunBegan) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        facts = {
            "service.name": os.environ.get("OTEL_SERVICE_NAME") or "shoal",
            "service.version": row.versions["shoal"],
            "service.instance.id": row.node_id,
            "shoal.node": row.node,
            "shoal.mesh": row.mesh_id,
            "shoal.run": row.run,
        }
        self._mesh_id = row.mesh_id
        self._ids = _Ids()
        complaints = logging.getLogger("opentelemetry")
        complaints.handlers = [_FirstOnly()]
        complaints.propagate = False
        # The end of the process does not wait for a collector that does not answer.
        self._provider = TracerProvider(
            resource=Resource.create(facts), id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("shoal", row.versions["shoal"])

    def _trace(self, name: str, stages: Sequence[Stage], facts: dict[str, Any]) -> None:
        if not stages:
            return
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        began_s = min(stage.began_s for stage in stages)
        ended_s = max(stage.began_s + stage.seconds for stage in stages)
        root = self._tracer.start_span(
            name, context=Context(), attributes=facts, start_time=_ns(began_s)
        )
        inside = set_span_in_context(root, Context())
        for stage in stages:
            span = self._tracer.start_span(stage.name, inside, start_time=_ns(stage.began_s))
            span.end(_ns(stage.began_s + stage.seconds))
        root.end(_ns(ended_s))


class _FirstOnly(logging.Handler):
    """A collector that is away is a line of the node's log, and not one for each try."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.said:
            self.said = True
            log.warning("traces.failing", why=one_line(record.getMessage())[:300])


class _Ids:
    """What OpenTelemetry calls an IdGenerator; its own draws from a generator anybody may seed."""

    next_trace = 0

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or 1

    def is_trace_id_random(self) -> bool:
        # A cut's is a hash.
        return False

    def generate_trace_id(self) -> int:
        return self.next_trace or 1


def trace_of_cut(mesh_id: str, height: int) -> int:
    """The trace id that every node of the mesh gives a height."""
    return int.from_bytes(hashlib.sha256(f"{mesh_id}/{height}".encode()).digest()[:16], "big")


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
