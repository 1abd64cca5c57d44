"""What is refused on the bytes alone, and that nothing valid is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.node.bulk_wire import CHUNKS, FETCH_BYTES_MAX, FETCHES
from shoal.node.errors import PeerError
from shoal.node.inspect_client import STATUSES, StatusReply
from shoal.node.screen import sound
from shoal.node.wire import FRAMES, Announced, Ping, make_frame
from shoal.proto import inspect_pb2, mesh_pb2

PING = make_frame(Ping(7)).SerializeToString()
REFERENCE = (bytes(32), 1, bytes(32))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PING + b"\x7a\x00", "unknown-field"),
        (PING + b"\xfa\x07\x00", "unknown-field"),
        (b"\x0d\x00\x00\x00\x00", "unknown-field"),
        (PING + PING, "too-many-fields"),
        (PING + b"\x3a\x00", "too-many-fields"),
        (PING[:-1], "malformed-message"),
        (b"\x32\x81", "malformed-message"),
        (b"\x32\xff\xff\xff\xff\x7f", "malformed-message"),
        (b"\x0a" + b"\x80" * 11, "malformed-message"),
        (b"\x0a\x04\x2a\x02\xff\xfe", "malformed-message"),
        (b"\x1a\x04\x0a\x02\x2a\x00", "unknown-field"),
        (bytes(3 << 20), "oversized"),
    ],
)
def test_bytes_that_are_no_frame_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(PeerError) as refusal:
        FRAMES.read(data)
    assert refusal.value.reason == reason


def test_what_is_refused_travels_as_a_value() -> None:
    refused = FRAMES.receive(b"\x7a\x00")
    assert isinstance(refused, PeerError)
    with pytest.raises(PeerError, match="unknown-field"):
        sound(refused)
    assert sound(FRAMES.receive(PING)).ping.stamp == 7


def test_the_limits_themselves_are_allowed() -> None:
    full = make_frame(Announced((REFERENCE,) * 1024)).SerializeToString()
    assert len(FRAMES.read(full).announce.deltas) == 1024
    over = make_frame(Announced((REFERENCE,) * 1025)).SerializeToString()
    with pytest.raises(PeerError, match="too-many-fields"):
        FRAMES.read(over)


def test_the_longest_request_fits() -> None:
    delta = mesh_pb2.DeltaReference(member=bytes(32), sequence=2**62, delta_id=bytes(32))
    request = mesh_pb2.FetchRequest(mesh_id=bytes(32), delta=delta)
    assert FETCHES.read(request.SerializeToString()) == request
    assert len(request.SerializeToString()) < FETCH_BYTES_MAX


def test_an_older_command_reads_a_newer_nodes_status_but_not_a_bomb() -> None:
    status = StatusReply(
        node="n",
        rejected={"a": 1, "b": 2},
        peers=[inspect_pb2.Peer(node_id="x", round_trip_ms=1.5)],
        checkpoints=[inspect_pb2.Checkpoint(height=1)] * 64,
        uptime_seconds=1.5,
    )
    data = status.SerializeToString()
    assert STATUSES.read(data) == status
    newer = data + b"\xaa\x1f\x01x" + b"\xb0\x1f\x05"
    assert STATUSES.read(newer).node == "n"
    with pytest.raises(PeerError, match="too-many-fields"):
        STATUSES.read(data + b"\xaa\x1f\x01x" * 65)


@given(data=st.binary(max_size=200))
def test_a_chunk_of_any_data_passes(data: bytes) -> None:
    chunk = mesh_pb2.Chunk(data=data)
    assert CHUNKS.read(chunk.SerializeToString()) == chunk
