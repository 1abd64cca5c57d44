"""What the checker reads in a node's durable rows: the only place that knows their keys."""

from collections.abc import Mapping

from shoal.consensus.votes import VoteKind

Rows = Mapping[str, bytes]


def vote_digest(rows: Rows, kind: VoteKind, view: int, sequence: int) -> bytes | None:
    """The digest of the vote that these rows remember, if they remember one."""
    family = "replica" if kind <= VoteKind.STABLE else "attestor"
    row = rows.get(f"{family}/vote/{int(kind)}/{view}/{sequence}")
    return row[:32] if row is not None else None


def prepared_certificate(rows: Rows, sequence: int) -> bytes | None:
    return rows.get(f"replica/prepared/{sequence}")


def stability_certificate(rows: Rows) -> bytes | None:
    return rows.get("replica/stable")


def has_left_for(rows: Rows, view: int) -> bool:
    """Whether a VIEW-CHANGE to this view is durable, or the view itself was entered since."""
    row = rows.get("replica/view", bytes(10))
    entered = int.from_bytes(row[:8], "big") >= view and row[8] == 1
    return entered or f"replica/view-change/{view}" in rows
