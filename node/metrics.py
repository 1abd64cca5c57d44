"""What a node tells about itself, as Prometheus wants to read it: /metrics over HTTP.

The numbers are those of `shoal status`; nothing is measured or kept for this alone. The library
serves from a thread of its own, so each scrape asks the event loop for one reply, whole at one
moment. What is not known yet has no sample: a loss of 0 would be a lie that an average believes.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import HTTPServer
from threading import Thread

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shoal.node.addresses import split_address
from shoal.node.errors import UserError
from shoal.node.inspect_client import StatusReply

ANSWER_S = 5.0
Kind = type[CounterMetricFamily] | type[GaugeMetricFamily]
COUNTER: Kind = CounterMetricFamily
GAUGE: Kind = GaugeMetricFamily


def _held_out_loss(reply: StatusReply) -> float | None:
    known = [each.held_out_loss for each in reply.checkpoints if each.held_out_loss]
    return known[-1] if known else None


def _height(reply: StatusReply) -> int:
    return max((each.height for each in reply.checkpoints), default=0)


def _links(reply: StatusReply) -> Mapping[str, float]:
    return {"connected": 0, **Counter(peer.state for peer in reply.peers)}


# Kind, name, help, and where it stands in the reply; None where it is not known.
NUMBERS: tuple[tuple[Kind, str, str, Callable[[StatusReply], float | None]], ...] = (
    (GAUGE, "shoal_uptime_seconds", "Since the node started.", lambda r: r.uptime_seconds),
    (
        GAUGE,
        "shoal_training_loss",
        "Mean training loss of the last round, nats per token.",
        lambda r: r.training.loss or None,
    ),
    (
        GAUGE,
        "shoal_held_out_loss",
        "Of the newest evaluated checkpoint on this node's held-out text, nats per token.",
        _held_out_loss,
    ),
    (COUNTER, "shoal_rounds_total", "Rounds published.", lambda r: r.training.round),
    (COUNTER, "shoal_steps_total", "Optimizer steps.", lambda r: r.training.steps),
    (COUNTER, "shoal_tokens_total", "Tokens trained on.", lambda r: r.training.tokens),
    (
        GAUGE,
        "shoal_computing_ratio",
        "Share of the time since the first round that was spent in steps.",
        lambda r: r.training.computing_share,
    ),
    (GAUGE, "shoal_checkpoint_height", "Newest certified height.", _height),
    (
        GAUGE,
        "shoal_checkpoint_age_seconds",
        "Since a checkpoint was last committed.",
        lambda r: None if r.consensus.commit_seconds < 0 else r.consensus.commit_seconds,
    ),
    (GAUGE, "shoal_consensus_epoch", "Epoch in force.", lambda r: r.consensus.epoch),
    (GAUGE, "shoal_consensus_view", "PBFT view.", lambda r: r.consensus.view),
    (
        GAUGE,
        "shoal_consensus_view_active",
        "1, or 0 while the view is being changed.",
        lambda r: float(r.consensus.view_active),
    ),
    (GAUGE, "shoal_validators", "Validators of the epoch.", lambda r: r.consensus.validators),
    (GAUGE, "shoal_quorum", "Validators that decide.", lambda r: r.consensus.quorum),
    (
        GAUGE,
        "shoal_event_loop_lag_p99_seconds",
        "How late the event loop wakes up, 99th percentile of two minutes.",
        lambda r: r.event_loop.lag_p99_ms / 1000,
    ),
)
# The same for what is told apart by one label.
LABELLED: tuple[tuple[Kind, str, str, str, Callable[[StatusReply], Mapping[str, float]]], ...] = (
    (
        COUNTER,
        "shoal_deltas_total",
        "Published by this node (ever); applied here, and too late for any cut (since it started).",
        "event",
        lambda r: {
            "published": r.training.round,
            "applied": r.gossip.applied_deltas,
            "late": r.gossip.late_deltas,
        },
    ),
    (
        GAUGE,
        "shoal_members",
        "Other members, by what this node takes them for.",
        "verdict",
        lambda r: {
            "alive": 0,
            "suspect": 0,
            "dead": 0,
            **Counter(peer.liveness for peer in r.peers if peer.liveness),
        },
    ),
    (GAUGE, "shoal_links", "Peers, by the state of the link.", "state", _links),
    (
        GAUGE,
        "shoal_queue_length",
        "What waits: for consensus, for an order, for a cut, to be found, to be pulled.",
        "queue",
        lambda r: {
            "inbox": r.consensus.inbox,
            "operations": r.consensus.pending_operations,
            "pending_deltas": r.gossip.pending_deltas,
            "missing_deltas": r.gossip.missing_deltas,
            "fetches": r.gossip.fetches,
        },
    ),
    (COUNTER, "shoal_refused_total", "From peers, refused.", "reason", lambda r: r.rejected),
)


def families(reply: StatusReply) -> Iterator[Metric]:
    """Everything that is exported, from one reply of the node."""
    yield InfoMetricFamily(
        "shoal_node",
        "Which node this is.",
        {
            "node": reply.node,
            "node_id": reply.node_id,
            "mesh_id": reply.mesh_id,
            "role": reply.role,
            "version": reply.version,
        },
    )
    for kind, name, text, number in NUMBERS:
        family = kind(name, text, labels=())
        if (value := number(reply)) is not None:
            family.add_metric((), value)
        yield family
    for kind, name, text, label, numbers in LABELLED:
        family = kind(name, text, labels=(label,))
        for key, value in sorted(numbers(reply).items()):
            family.add_metric((key,), value)
        yield family
    traffic = COUNTER("shoal_payload_bytes_total", "By kind.", labels=("direction", "kind"))
    for direction, counts in (("sent", reply.sent_bytes), ("received", reply.received_bytes)):
        for kind_of_frame, count in sorted(counts.items()):
            traffic.add_metric((direction, kind_of_frame), count)
    yield traffic


class _Scrape(Collector):
    def __init__(self, status: Callable[[], StatusReply], loop: asyncio.AbstractEventLoop) -> None:
        self._status = status
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        return families(asyncio.run_coroutine_threadsafe(self._ask(), self._loop).result(ANSWER_S))

    async def _ask(self) -> StatusReply:
        return self._status()


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """The listener for Prometheus, as long as it runs."""

    server: HTTPServer
    thread: Thread

    async def stop(self) -> None:
        """Answer nobody any more."""
        await asyncio.to_thread(self.server.shutdown)
        self.server.server_close()
        self.thread.join()


def serve_metrics(address: str, status: Callable[[], StatusReply]) -> MetricsServer:
    """Serve what `status` returns, called on this event loop; raises UserError."""
    registry = CollectorRegistry()
    registry.register(_Scrape(status, asyncio.get_running_loop()))
    ProcessCollector(registry=registry)
    host, port = split_address(address)
    try:
        return MetricsServer(*start_http_server(port, host, registry))
    except (OSError, OverflowError):
        raise UserError(
            f"cannot listen on {address}: the port is in use or the address is not this "
            "machine's; stop the other process or set another metrics under [node]"
        ) from None
