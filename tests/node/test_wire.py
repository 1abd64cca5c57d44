"""Frames from a peer are checked before they become values; what is checked survives a round."""

from contextlib import suppress

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from shoal.gossip.liveness import Alive, Kind, Message, Suspicion
from shoal.node.errors import PeerError
from shoal.node.statements import BOOT_STATEMENT_BYTES
from shoal.node.wire import (
    Announced,
    ConsensusMessages,
    Frame,
    Hello,
    LinkMessage,
    Ping,
    Pong,
    Proof,
    SummaryMessage,
    make_frame,
    parse_frame,
)

ids = st.binary(min_size=32, max_size=32)
signatures = st.binary(min_size=64, max_size=64)
counters = st.integers(1, 2**62)
alive_words = st.builds(Alive, ids, counters, signatures)
suspicions = st.builds(Suspicion, ids, ids, counters, signatures, signatures) | st.builds(
    Suspicion, ids, ids, st.just(0), st.just(b""), signatures
)
# Own words travel before accusations.
rumours = st.tuples(st.lists(alive_words, max_size=4), st.lists(suspicions, max_size=4)).map(
    lambda both: (*both[0], *both[1])
)
sequences = st.integers(1, 2**62)
references = st.tuples(ids, sequences, ids)
messages = st.one_of(
    st.builds(
        Hello, st.integers(0, 2**32 - 1), ids, ids, ids, st.text(st.characters(codec="ascii"))
    ),
    st.builds(
        Proof,
        st.binary(min_size=64, max_size=64),
        st.binary(min_size=BOOT_STATEMENT_BYTES, max_size=BOOT_STATEMENT_BYTES),
    ),
    st.builds(Announced, st.lists(references, max_size=20).map(tuple)),
    st.builds(
        SummaryMessage,
        st.integers(0, 2**62),
        st.dictionaries(ids, st.tuples(st.integers(0, 2**62), st.binary(max_size=128)), max_size=5),
    ),
    st.builds(ConsensusMessages, st.lists(st.binary(max_size=500), min_size=1).map(tuple)),
    st.builds(
        Message,
        st.sampled_from(Kind),
        st.integers(0, 2**62),
        ids | st.just(b""),
        signatures | st.just(b""),
        rumours,
    ),
    st.builds(Ping, st.integers(0, 2**64 - 1)),
    st.builds(Pong, st.integers(0, 2**64 - 1)),
)


@given(message=messages)
def test_what_is_said_is_what_is_heard(message: object) -> None:
    frame = make_frame(message)  # type: ignore[arg-type]
    assert parse_frame(Frame.FromString(frame.SerializeToString())) == message


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_or_are_a_message(data: bytes) -> None:
    with suppress(DecodeError, PeerError):
        message = parse_frame(Frame.FromString(data))
        assert parse_frame(make_frame(message)) == message


def test_too_much_of_anything_is_refused() -> None:
    reference = (bytes(32), 1, bytes(32))
    too_much: list[LinkMessage] = [
        Announced((reference,) * 1025),
        SummaryMessage(1, {bytes([a, b]) * 16: (1, b"") for a in range(5) for b in range(250)}),
        SummaryMessage(1, {bytes(32): (1, bytes(129))}),
        ConsensusMessages((bytes((1 << 20) + 1),)),
        ConsensusMessages((bytes(1 << 20), bytes(1 << 20), b"x")),
        ConsensusMessages((b"",) * 1025),
        Hello(1, bytes(32), bytes(32), bytes(32), "a" * 256),
        Announced(((bytes(31), 1, bytes(32)),)),
        Announced(((bytes(32), 0, bytes(32)),)),
        Message(Kind.NEWS, rumours=(Alive(bytes(32), 1, bytes(64)),) * 9),
        Message(Kind.NEWS, rumours=(Alive(bytes(32), 0, bytes(64)),)),
        Message(Kind.NEWS, rumours=(Alive(bytes(32), 2**63, bytes(64)),)),
        Message(Kind.NEWS, rumours=(Suspicion(bytes(32), bytes(32), 1, b"", bytes(64)),)),
        Message(Kind.NEWS, rumours=(Suspicion(bytes(32), bytes(31), 0, b"", bytes(64)),)),
        Message(Kind.ASK, 1, bytes(33)),
        Message(Kind.ACK, 1, b"", bytes(63)),
        Message(Kind.ACK, 2**63),
    ]
    for message in too_much:
        with pytest.raises(PeerError):
            parse_frame(make_frame(message))
