"""A delta on its way: what is signed, what is checked, in which order."""

import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.codec import decode, encode, max_frame_bytes
from shoal.compression.frame import parse_frame
from shoal.compression.select import select
from shoal.gossip.delta import (
    BLOB_OVERHEAD_BYTES,
    HEADER_BYTES,
    Delta,
    DeltaHeader,
    make_delta,
)
from shoal.gossip.errors import DeltaError
from tests.gossip.builders import (
    MESH,
    SCHEMA,
    epoch,
    hashed_anchor,
    hashed_weights,
    header,
    member,
)

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
FRAME = b"frame bytes" * 7


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def signed() -> Delta:
    return make_delta(
        FRAME,
        mesh_id=MESH,
        sender=KEY.public_key().public_bytes_raw(),
        sequence=7,
        height=3,
        steps=8,
        tokens=8192,
        sign=KEY.sign,
    )


def test_a_delta_travels_as_one_blob() -> None:
    delta = signed()
    blob = delta.to_bytes()
    assert len(blob) == BLOB_OVERHEAD_BYTES + len(FRAME) == 128 + 64 + len(FRAME)
    again = Delta.from_bytes(blob, frame_bytes_max=len(FRAME))
    assert again == delta
    again.require_signature(verify)


def test_the_header_has_one_layout_for_ever() -> None:
    head = header(member(5), 9, height=2)
    assert head.to_bytes().hex() == (
        (b"M" * 32 + b"\x05" * 32).hex()
        + "0000000000000009" + "0000000000000002" + "00000008" + "0000000000000064" + "000003e8"
        + hashlib.sha256(b"").hexdigest()
    )  # fmt: skip
    assert DeltaHeader.from_bytes(head.to_bytes()) == head
    assert head.id == hashlib.sha256(head.to_bytes()).digest()
    assert head.signing_bytes == b"SHOAL-DELTA\x01" + head.to_bytes()


@given(bit=st.integers(0, 8 * (HEADER_BYTES + 64) - 1))
@settings(deadline=None)
def test_no_bit_of_header_or_signature_can_be_changed(bit: int) -> None:
    blob = bytearray(signed().to_bytes())
    blob[bit // 8] ^= 1 << bit % 8
    reasons = {"bad-header", "too-large", "wrong-size", "bad-frame-hash", "bad-signature"}
    with pytest.raises(DeltaError) as caught:
        Delta.from_bytes(bytes(blob), frame_bytes_max=1000).require_signature(
            lambda public, message, signature: (
                public == signed().header.sender and verify(public, message, signature)
            )
        )
    assert caught.value.reason in reasons


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "truncated"),
        (signed().to_bytes()[:191], "truncated"),
        (signed().to_bytes()[:-1], "wrong-size"),
        (signed().to_bytes() + b"x", "wrong-size"),
        (signed().to_bytes()[:-1] + b"x", "bad-frame-hash"),
    ],
)
def test_damaged_blobs_say_what_is_wrong(blob: bytes, reason: str) -> None:
    with pytest.raises(DeltaError) as caught:
        Delta.from_bytes(blob, frame_bytes_max=len(FRAME))
    assert caught.value.reason == reason


def test_a_frame_larger_than_the_layout_allows_is_refused_before_it_is_hashed() -> None:
    with pytest.raises(DeltaError) as caught:
        Delta.from_bytes(signed().to_bytes()[:200], frame_bytes_max=len(FRAME) - 1)
    assert caught.value.reason == "too-large"


def test_another_members_signature_is_no_signature() -> None:
    other = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
    delta = signed()
    forged = Delta(delta.header, other.sign(delta.header.signing_bytes), FRAME)
    with pytest.raises(DeltaError) as caught:
        forged.require_signature(verify)
    assert caught.value.reason == "bad-signature"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sequence", 0),
        ("sequence", 2**63),
        ("height", 2**63),
        ("tokens", 0),
        ("tokens", 2**41),
        ("frame_bytes", 0),
        ("steps", 0),
    ],
)
def test_numbers_out_of_range_are_refused(field: str, value: int) -> None:
    positions = {"sequence": (64, 8), "height": (72, 8), "steps": (80, 4), "tokens": (84, 8)}
    positions["frame_bytes"] = (92, 4)
    start, size = positions[field]
    data = bytearray(header(member(1), 1).to_bytes())
    data[start : start + size] = value.to_bytes(size, "big")
    with pytest.raises(DeltaError) as caught:
        DeltaHeader.from_bytes(bytes(data))
    assert caught.value.reason == "bad-header"


def test_what_a_receiver_decodes_from_the_blob_gives_the_anchor_the_sender_has() -> None:
    layout = SCHEMA.layout
    parameters = epoch(3, 4, alpha=1.7)
    chosen = select(hashed_weights("learned") * 2.0**-10, layout, 64)
    sender = hashed_anchor("shared")
    sender.apply(chosen, parameters.increments(chosen, sender=member(2), steps=8, schema=SCHEMA))
    sent = make_delta(
        encode(chosen),
        mesh_id=MESH,
        sender=member(2),
        sequence=1,
        height=3,
        steps=8,
        tokens=8192,
        sign=KEY.sign,
    ).to_bytes()

    received = Delta.from_bytes(sent, frame_bytes_max=max_frame_bytes(layout, 64))
    delta = decode(received.frame, layout, kept_per_chunk=64)
    receiver = hashed_anchor("shared")
    table = parameters.increments(delta, sender=received.header.sender, steps=8, schema=SCHEMA)
    receiver.apply(delta, table)
    assert receiver.root() == sender.root() != hashed_anchor("shared").root()
    frame = parse_frame(received.frame, layout)
    assert (parameters.increments(frame, sender=member(2), steps=8, schema=SCHEMA) == table).all()
