"""A manifest can be checked against a certified root before any of the data is here."""

from dataclasses import replace

import pytest
import torch

from shoal.gossip.anchor import Anchor
from shoal.gossip.errors import GossipError
from shoal.gossip.manifest import HEADER, Manifest, chunk_sizes, manifest_bytes
from shoal.gossip.schema import ModelSchema, TensorSchema
from shoal.gossip.tree import CHUNK_BYTES
from tests.gossip.builders import SCHEMA, hashed_anchor

PER_CHUNK = CHUNK_BYTES // 4


def anchor_of(parameters: int) -> Anchor:
    schema = ModelSchema((TensorSchema("weight", (parameters,), 28),))
    return Anchor(schema, torch.arange(parameters, dtype=torch.int32))


def reason_of(data: bytes) -> str:
    with pytest.raises(GossipError) as caught:
        Manifest.from_bytes(data)
    assert caught.value.reason == "bad-manifest"
    return str(caught.value)


@pytest.mark.parametrize(
    "parameters", [1, PER_CHUNK - 1, PER_CHUNK, PER_CHUNK + 1, 3 * PER_CHUNK + 16384 * 5 + 7]
)
def test_the_manifest_of_an_anchor_gives_its_root(parameters: int) -> None:
    anchor = anchor_of(parameters)
    manifest = Manifest.of(anchor)
    assert manifest.root == anchor.root()
    assert len(manifest.addresses) == len(chunk_sizes(parameters))
    assert sum(chunk_sizes(parameters)) == 4 * parameters
    data = manifest.to_bytes()
    assert len(data) == manifest_bytes(parameters)
    back = Manifest.from_bytes(data)
    assert back == manifest
    back.require(anchor.schema, anchor.root())


def test_another_root_or_model_is_refused() -> None:
    anchor = anchor_of(2 * PER_CHUNK)
    manifest, root = Manifest.of(anchor), anchor.root()
    same_size = ModelSchema((TensorSchema("weight", (2 * PER_CHUNK, 1), 28),))
    for schema, certified in (
        (anchor.schema, hashed_anchor("other").root()),
        (same_size, root),
        (SCHEMA, root),
    ):
        with pytest.raises(GossipError, match="bad-manifest"):
            manifest.require(schema, certified)


def test_addresses_in_another_order_do_not_give_the_root() -> None:
    manifest = Manifest.of(anchor_of(2 * PER_CHUNK))
    swapped = replace(manifest, addresses=manifest.addresses[::-1])
    assert "do not give its root" in reason_of(swapped.to_bytes())
    assert "do not give its root" in reason_of(replace(manifest, root=bytes(32)).to_bytes())


def test_bytes_that_are_no_manifest_are_refused_by_what_is_wrong() -> None:
    data = Manifest.of(anchor_of(PER_CHUNK + 1)).to_bytes()
    assert "that are none" in reason_of(b"")
    assert "that are none" in reason_of(b"X" + data[1:])
    assert "version 2" in reason_of(data[:14] + b"\x02" + data[15:])
    assert "for 2 chunks" in reason_of(data[:-1])
    assert "for 2 chunks" in reason_of(data + bytes(32))
    huge = HEADER.pack(b"SHOAL-MANIFEST", 1, bytes(32), 2**63, bytes(32), 2**31)
    assert "chunks of" in reason_of(huge)
    assert "chunks of" in reason_of(HEADER.pack(b"SHOAL-MANIFEST", 1, bytes(32), 0, bytes(32), 0))
