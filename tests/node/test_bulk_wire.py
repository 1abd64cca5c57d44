"""Bulk requests and answers: what is asked is what is heard, and nothing is longer than it may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gossip.chunks import chunk_count
from shoal.gossip.tree import CHUNK_BYTES
from shoal.node.bulk_wire import (
    Description,
    Holdings,
    Want,
    WantChunk,
    WantDelta,
    WantDeltaLog,
    WantDescription,
    WantGenesis,
    WantHoldings,
    make_description,
    make_fetch,
    make_holdings,
    parse_description,
    parse_fetch,
    parse_holdings,
)
from shoal.node.errors import PeerError
from shoal.proto import mesh_pb2

ids = st.binary(min_size=32, max_size=32)
heights = st.integers(1, 2**62)
wants = st.one_of(
    st.builds(WantDelta, st.tuples(ids, heights, st.one_of(st.just(b""), ids))),
    st.builds(WantDescription, st.integers(0, 2**62)),
    st.builds(WantChunk, heights, ids),
    st.builds(WantDeltaLog, heights),
    st.builds(WantHoldings, heights),
    st.just(WantGenesis()),
)


@given(want=wants)
def test_what_is_asked_is_what_is_heard(want: Want) -> None:
    request = make_fetch(bytes(32), want).SerializeToString()
    assert parse_fetch(mesh_pb2.FetchRequest.FromString(request)) == want


@st.composite
def descriptions(draw: st.DrawFn) -> Description:
    anchor_bytes = draw(st.integers(1, 4 * CHUNK_BYTES))
    count = chunk_count(anchor_bytes)
    return Description(
        draw(heights),
        draw(st.binary(max_size=50)),
        draw(st.binary(max_size=50)),
        draw(st.binary(max_size=50)),
        anchor_bytes,
        tuple(draw(st.lists(ids, min_size=count, max_size=count))),
        b"",
    )


@given(described=descriptions())
def test_a_description_arrives_as_it_was(described: Description) -> None:
    message = mesh_pb2.Chunk.FromString(make_description(described).SerializeToString())
    assert parse_description(message) == (described, 0)


@given(addresses=st.lists(ids, max_size=40, unique=True), log=st.booleans(), data=st.data())
def test_holdings_arrive_as_they_were(
    addresses: list[bytes], log: bool, data: st.DataObject
) -> None:
    held = frozenset(each for each in addresses if data.draw(st.booleans()))
    message = make_holdings(Holdings(held, log), addresses)
    assert parse_holdings(message, addresses) == Holdings(held, log)


def header(**changes: object) -> mesh_pb2.Chunk:
    fields: dict[str, object] = {"height": 1, "anchor_bytes": 100, "addresses": bytes(32)}
    return mesh_pb2.Chunk(checkpoint=mesh_pb2.CheckpointHeader(**{**fields, **changes}))  # type: ignore[arg-type]


def test_the_header_that_the_refused_ones_differ_from_is_accepted() -> None:
    described, epochs_bytes = parse_description(header())
    assert (described.addresses, epochs_bytes) == ((bytes(32),), 0)


@pytest.mark.parametrize(
    "message",
    [
        mesh_pb2.Chunk(data=b"no header"),
        header(height=0),
        header(height=2**63),
        header(anchor_bytes=0, addresses=b""),
        header(anchor_bytes=CHUNK_BYTES + 1),
        header(addresses=bytes(33)),
        header(addresses=bytes(64)),
        header(anchor_bytes=2**63, addresses=bytes(32)),
        header(operation=bytes((1 << 19) + 1)),
        header(certificate=bytes((1 << 16) + 1)),
        header(settled=bytes((1 << 20) + 1)),
        header(epochs_bytes=(4 << 20) + 1),
        header(anchor_bytes=32769 * CHUNK_BYTES, addresses=bytes(32 * 32769)),
    ],
)
def test_what_no_checkpoint_can_look_like_is_refused(message: mesh_pb2.Chunk) -> None:
    with pytest.raises(PeerError):
        parse_description(message)


@pytest.mark.parametrize("bitmap", [b"", bytes(1), bytes(3), bytes(1000)])
def test_a_bitmap_of_another_length_is_refused(bitmap: bytes) -> None:
    message = mesh_pb2.Chunk(holdings=mesh_pb2.Holdings(bitmap=bitmap))
    with pytest.raises(PeerError):
        parse_holdings(message, [bytes([number]) * 32 for number in range(9)])
