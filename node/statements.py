"""Signed statements that convict their author when there are two of them (consensus/evidence.py).

Consensus evicts whom two statements prove to be dishonest, but it knows nothing of deltas and
links; this module reads both for it. A member numbers its deltas and signs one per number. A
process signs, once per boot, which boot of its key it is, with a nonce that only this process
has: two nonces for one boot are two processes with one key.

An honest node cannot be convicted: the number of a delta and the count of boots are durable
before anything is signed with them.
"""

from dataclasses import dataclass

from shoal.consensus.evidence import Evict, Proof, ReadStatement, Statement
from shoal.consensus.records import operation_bytes
from shoal.gossip.delta import HEADER_BYTES, SIGNATURE_BYTES, Delta, DeltaHeader
from shoal.gossip.errors import DeltaError
from shoal.node.identity import verify

_DELTA, _BOOT = b"\x01", b"\x02"
_BOOT_DOMAIN = b"SHOAL-BOOT\x01"
NONCE_BYTES = 16
BOOT_STATEMENT_BYTES = 1 + 32 + 8 + NONCE_BYTES + SIGNATURE_BYTES


@dataclass(frozen=True, slots=True)
class Boot:
    """Which start of a key a process is: the durable count, and what tells it from a copy."""

    node_id: bytes
    count: int
    nonce: bytes

    def signed_bytes(self, mesh_id: bytes) -> bytes:
        """What the key signs."""
        return _BOOT_DOMAIN + mesh_id + self.node_id + self.count.to_bytes(8, "big") + self.nonce

    def statement(self, signature: bytes) -> bytes:
        """The signed statement as it travels and as it stands in evidence."""
        return _BOOT + self.node_id + self.count.to_bytes(8, "big") + self.nonce + signature


def delta_statement(delta: Delta) -> bytes:
    """A delta's header and signature: all that its number and content depend on."""
    return _DELTA + delta.header.to_bytes() + delta.signature


def parse_boot(data: bytes, mesh_id: bytes) -> Boot | None:
    """The boot that this statement is about; None unless its key signed exactly this."""
    if len(data) != BOOT_STATEMENT_BYTES or data[:1] != _BOOT:
        return None
    boot = Boot(data[1:33], int.from_bytes(data[33:41], "big"), data[41 : 41 + NONCE_BYTES])
    signature = data[41 + NONCE_BYTES :]
    return boot if verify(boot.node_id, boot.signed_bytes(mesh_id), signature) else None


def statement_reader(mesh_id: bytes) -> ReadStatement:
    """What the replica reads evidence with; statements of other meshes are none."""

    def read(data: bytes) -> Statement | None:
        if data[:1] == _BOOT:
            boot = parse_boot(data, mesh_id)
            if boot is None:
                return None
            return Statement(boot.node_id, data[:1] + data[33:41], boot.nonce)
        return _read_delta(data, mesh_id) if data[:1] == _DELTA else None

    return read


def _read_delta(data: bytes, mesh_id: bytes) -> Statement | None:
    if len(data) != 1 + HEADER_BYTES + SIGNATURE_BYTES:
        return None
    try:
        header = DeltaHeader.from_bytes(data[1 : 1 + HEADER_BYTES])
    except DeltaError:
        return None
    signature = data[1 + HEADER_BYTES :]
    if header.mesh_id != mesh_id or not verify(header.sender, header.signing_bytes, signature):
        return None
    return Statement(header.sender, data[:1] + header.sequence.to_bytes(8, "big"), header.id)


def eviction(member: bytes, one: bytes, other: bytes) -> bytes:
    """The operation that puts out a member that made both statements."""
    first, second = sorted((one, other))
    return operation_bytes(Evict(member, Proof.STATEMENTS, first, second))
