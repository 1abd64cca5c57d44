"""What the checker reads in a node's durable rows: the only place that knows their keys."""

from collections.abc import Mapping

from shoal.consensus.votes import Vote, VoteKind

Rows = Mapping[str, bytes]
ATTESTOR_KINDS = (VoteKind.ATTEST, VoteKind.CANDIDATE)


def vote_digest(rows: Rows, vote: Vote) -> bytes | None:
    """The digest of the vote for the same place that these rows remember, if they do."""
    family = "attestor" if vote.kind in ATTESTOR_KINDS else "replica"
    place = f"{vote.epoch}/{int(vote.kind)}/{vote.view}/{vote.sequence}"
    row = rows.get(f"{family}/vote/{place}")
    return row[:32] if row is not None else None


def oldest_vote_epoch(rows: Rows) -> int | None:
    """The earliest epoch of which a vote in the log is remembered."""
    epochs = [int(key.split("/")[2]) for key in rows if key.startswith("replica/vote/")]
    return min(epochs, default=None)


def prepared_certificate(rows: Rows, sequence: int) -> bytes | None:
    return rows.get(f"replica/prepared/{sequence}")


def stability_certificate(rows: Rows) -> bytes | None:
    return rows.get("replica/stable")


def ready_certificate(rows: Rows) -> bytes | None:
    return rows.get("replica/ready")


def has_link(rows: Rows, epoch: int) -> bool:
    """Whether the proof of this epoch is durable."""
    return f"replica/epoch/{epoch:08d}" in rows


def may_vote_in(rows: Rows, view: int) -> bool:
    """Whether this view has been entered, or has been left in the very step that voted."""
    row = rows.get("replica/view", bytes(8) + bytes([1]))
    where, active = int.from_bytes(row[:8], "big"), row[8] == 1
    return where > view or (where == view and active)


def has_left_for(rows: Rows, view: int) -> bool:
    """Whether a VIEW-CHANGE to this view is durable, or the view itself was entered since."""
    row = rows.get("replica/view", bytes(10))
    entered = int.from_bytes(row[:8], "big") >= view and row[8] == 1
    return entered or f"replica/view-change/{view}" in rows
