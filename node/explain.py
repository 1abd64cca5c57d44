"""An account of the chronicle as the reply of shoal.v1.Inspect."""

from collections.abc import Collection

from shoal.node.chronicle import Account, Chronicle
from shoal.proto.inspect_pb2 import ExplainReply, Waited

__all__ = ["ExplainReply", "explain_reply"]

NEVER = -1.0


def explain_reply(chronicle: Chronicle, members: Collection[bytes], number: int) -> ExplainReply:
    """What is known about the cut that round `number` went into."""
    oldest, newest = chronicle.rounds
    account = chronicle.find(number)
    if account is None:
        return ExplainReply(oldest_round=oldest, newest_round=newest)
    everybody = {*members, *account.validators, *account.included, *account.left_out}
    return ExplainReply(
        known=True,
        height=account.height,
        round=account.round,
        committed=account.committed,
        due_seconds=_seconds(account.due_at),
        due_why=account.due_why,
        committed_seconds=_seconds(account.committed_at),
        proposer=account.proposer.hex(),
        attempt=account.attempt,
        quorum=account.quorum,
        members=[_waited(account, member) for member in sorted(everybody)],
        oldest_round=oldest,
        newest_round=newest,
        rounds_wanted=account.rounds_wanted,
    )


def _seconds(value: float | None) -> float:
    return NEVER if value is None else value


def _waited(account: Account, member: bytes) -> Waited:
    count, first, last = account.included.get(member, (0, 0, 0))
    return Waited(
        node_id=member.hex(),
        validator=member in account.validators,
        ready_seconds=_seconds(account.ready.get(member)),
        included=count,
        left_out=account.left_out.get(member, 0),
        first_round=first,
        last_round=last,
        liveness=account.states.get(member, ""),
        waited_for=member == account.waited_for,
    )
