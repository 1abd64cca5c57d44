"""The log of a cut: its signed deltas, in the order of the cut (deltas.bin of a checkpoint).

Whoever pulls one from another member checks it against the certified cut before it counts as
kept: every delta by its id, which the record names, and by its sender's signature, without which
nobody could audit it later.
"""

from pathlib import Path

from shoal.consensus.records import Checkpoint, parse_operation
from shoal.gossip.delta import BLOB_OVERHEAD_BYTES, Delta
from shoal.node.bulk_wire import Description
from shoal.node.checkpoints import read_list
from shoal.node.errors import PeerError
from shoal.node.identity import verify


def check_delta_log(described: Description, path: Path, *, frame_bytes_max: int) -> None:
    """Raise PeerError or GossipError unless the file is the log of this certified cut."""
    operation = parse_operation(described.operation)
    assert isinstance(operation, Checkpoint), "a description is of a checkpoint"
    named = iter(operation.record.cut)
    for blob in read_list(path, BLOB_OVERHEAD_BYTES + frame_bytes_max):
        delta = Delta.from_bytes(blob, frame_bytes_max=frame_bytes_max)
        entry = next(named, None)
        if entry is None or delta.header.id != entry.delta_id:
            raise PeerError("delta-log", "it holds a delta that the cut does not name there")
        delta.require_signature(verify)
    if next(named, None) is not None:
        raise PeerError("delta-log", "it lacks deltas of the cut")
