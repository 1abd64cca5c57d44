"""Which process of a key is the current one, and how the other comes to know."""

from pathlib import Path

import pytest

from shoal.node.boots import Boots
from shoal.node.errors import PeerError
from shoal.node.identity import Identity

MESH = bytes(32)


@pytest.fixture
def key(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "identity.key")


@pytest.fixture
def member(tmp_path: Path) -> Boots:
    return _process(Identity.create(tmp_path / "member.key"), 1, [])


def _process(key: Identity, count: int, evidence: list[bytes]) -> Boots:
    return Boots(key, MESH, count, evidence.append)


def _refusal(member: Boots, key: Identity, process: Boots) -> PeerError:
    with pytest.raises(PeerError) as refused:
        member.check(key.node_id, process.own)
    return refused.value


def test_the_second_process_of_a_boot_is_shown_the_first(key: Identity, tmp_path: Path) -> None:
    evidence: list[bytes] = []
    witness = _process(Identity.create(tmp_path / "witness.key"), 1, evidence)
    first, second = _process(key, 7, []), _process(key, 7, [])
    witness.check(key.node_id, first.own)
    refused = _refusal(witness, key, second)
    assert refused.reason == "two-processes" and len(evidence) == 1
    second.shown(refused.proof)
    assert second.rival is not None and second.rival.count == 7
    # The first has nothing to learn from its own words.
    first.shown(refused.proof)
    assert first.rival is None


def test_a_process_that_was_replaced_is_shown_its_successor(key: Identity, member: Boots) -> None:
    old, new = _process(key, 3, []), _process(key, 4, [])
    member.check(key.node_id, old.own)
    member.check(key.node_id, new.own)
    refused = _refusal(member, key, old)
    assert refused.reason == "stale-boot"
    old.shown(refused.proof)
    assert old.rival is not None and old.rival.count == 4


def test_nobody_can_stop_a_process_with_anything_else(key: Identity, member: Boots) -> None:
    """Its own past, somebody else's boots and forgeries: a member that lies has no more."""
    now, past = _process(key, 5, []), _process(key, 4, [])
    forged = bytearray(_process(key, 6, []).own)
    forged[-1] ^= 1
    for shown in (past.own, member.own, bytes(forged), b"", b"\x02" * 5000):
        now.shown(shown)
    assert now.rival is None
