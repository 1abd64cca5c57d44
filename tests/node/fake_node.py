"""A node that only answers Inspect and health, for tests of what a person sees."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from shoal.proto import inspect_pb2, inspect_pb2_grpc


def example_reply(**changes: Any) -> inspect_pb2.StatusReply:
    """A node of a small mesh in the middle of its run."""
    reply = inspect_pb2.StatusReply(
        node="node0",
        node_id="ab" * 32,
        mesh_id="cd" * 32,
        version="0.1.0",
        uptime_seconds=125.0,
        address="127.0.0.1:7400",
        role="validator",
        training=inspect_pb2.Training(
            state="training",
            device="cpu",
            parameters=820_000,
            round=17,
            max_rounds=32,
            local_steps=8,
            loss=2.513,
            tokens=139_264,
        ),
        gossip=inspect_pb2.Gossip(
            pending_deltas=3, bits_per_kept_value=9.42, compression_vs_fp32=27.0, alpha=1.4
        ),
        consensus=inspect_pb2.Consensus(
            epoch=2,
            view=1,
            view_active=True,
            validators=4,
            quorum=3,
            byzantine_tolerance=1,
            members=4,
        ),
        checkpoints=[example_checkpoint(1), example_checkpoint(2)],
        peers=[
            inspect_pb2.Peer(
                node_id="11" * 32, address="127.0.0.1:7401", state="connected", round_trip_ms=1.5
            ),
            inspect_pb2.Peer(
                node_id="22" * 32,
                address="127.0.0.1:7402",
                state="unreachable",
                last_error="connection refused",
            ),
        ],
        event_loop=inspect_pb2.Loop(lag_p50_ms=0.2, lag_p99_ms=3.5, lag_max_ms=12.0),
        rejected={"bad-signature": 2, "stale": 1},
        sent_bytes={"delta": 1_234_567, "consensus": 2_000},
        received_bytes={"delta": 3_000_000},
        resident_memory_bytes=350_000_000,
    )
    for name, value in changes.items():
        setattr(reply, name, value)
    return reply


def example_checkpoint(height: int, **changes: Any) -> inspect_pb2.Checkpoint:
    """A certified checkpoint; the root differs from height to height."""
    checkpoint = inspect_pb2.Checkpoint(
        height=height,
        round=8 * height,
        root=f"{height:064x}",
        signatures=3,
        view=0,
        deltas=32,
        tokens=262_144 * height,
        held_out_loss=2.6,
        materialised=True,
    )
    for name, value in changes.items():
        setattr(checkpoint, name, value)
    return checkpoint


def example_explanation() -> inspect_pb2.ExplainReply:
    """A height that waited for its third validator and left one out."""
    life = ("alive", "alive", "alive", "dead")
    return inspect_pb2.ExplainReply(
        known=True,
        height=3,
        round=24,
        committed=True,
        due_seconds=12.4,
        due_why="3 of 4 validators had 8 deltas or more here",
        committed_seconds=13.1,
        proposer="11" * 32,
        attempt=1,
        quorum=3,
        rounds_wanted=8,
        members=[
            inspect_pb2.Waited(
                node_id=f"{index}{index}" * 32,
                validator=True,
                ready_seconds=(9.0, 10.0, 12.2, -1.0)[index],
                included=(8, 8, 8, 0)[index],
                left_out=(0, 1, 0, 0)[index],
                first_round=17,
                last_round=24,
                liveness=life[index],
                waited_for=index == 2,
            )
            for index in range(4)
        ],
    )


class FakeInspect(inspect_pb2_grpc.InspectServicer):
    """Answers with what it was given; a watch ends after two answers, as a node that stops."""

    def __init__(self, reply: inspect_pb2.StatusReply, lasting: bool) -> None:
        self.reply = reply
        self.lasting = lasting

    def Status(self, request: Any, context: Any) -> inspect_pb2.StatusReply:
        return self.reply

    def Explain(self, request: Any, context: Any) -> inspect_pb2.ExplainReply:
        return example_explanation() if request.round < 100 else inspect_pb2.ExplainReply()

    def Watch(self, request: Any, context: Any) -> Iterator[inspect_pb2.StatusReply]:
        for uptime_seconds in (1.0, 2.0):
            reply = inspect_pb2.StatusReply()
            reply.CopyFrom(self.reply)
            reply.uptime_seconds = uptime_seconds
            yield reply
        while self.lasting and context.is_active():
            time.sleep(0.2)
            yield reply


@contextmanager
def fake_node(
    reply: inspect_pb2.StatusReply | None = None,
    *,
    serving: bool = True,
    lasting: bool = False,
    address: str = "127.0.0.1:0",
) -> Iterator[str]:
    """Serve, on a free loopback port unless told; gives the address.

    lasting: who watches is told for as long as they like, not twice.

    Without a reply it is a gRPC server that knows nothing of Shoal.
    """
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    if reply is not None:
        inspect_pb2_grpc.add_InspectServicer_to_server(FakeInspect(reply, lasting), server)
        checks = health.HealthServicer()  # type: ignore[no-untyped-call]
        status = health_pb2.HealthCheckResponse
        checks.set("", status.SERVING if serving else status.NOT_SERVING)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def serve_finished_node(directory: Path, address: str, rounds: int) -> None:
    """Be a node of the demo that has made all its rounds, until SIGTERM ends the process."""
    reply = example_reply(node=directory.name)
    reply.training.round = rounds
    reply.training.state = "finished"
    reply.gossip.pending_deltas = 0
    del reply.checkpoints[:]
    reply.checkpoints.extend(example_checkpoint(height) for height in (1, 2, 3))
    reply.checkpoints[-1].round = rounds
    newest = directory / "checkpoints" / "3"
    (newest / "chunks").mkdir(parents=True, exist_ok=True)
    (newest / "model.safetensors").touch()
    (newest / "chunks" / "00").write_bytes(b"the same everywhere")
    with fake_node(reply, address=address):
        print("serving", flush=True)
        threading.Event().wait()
