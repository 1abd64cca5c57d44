"""What a node does with an operation that is handed in: from newcomers, and from operators.

The log decides; what is refused here would be refused there as well, later. With two exceptions,
which the log cannot judge since it has no clock and only the newest epoch: an invitation that has
expired, and one that names another history of the mesh (docs/adr/0016).
"""

from collections.abc import Callable

from shoal.consensus.epochs import EpochChain
from shoal.consensus.invitations import Invitation
from shoal.consensus.records import Join, parse_operation
from shoal.consensus.replica import Replica
from shoal.node.invitations import REFUSALS, is_expired
from shoal.node.mesh_parameters import ParametersInForce


def is_of_another_history(invitation: Invitation, chain: EpochChain) -> bool:
    """Whether this chain knows the epoch that the invitation names, and as another one."""
    if invitation.epoch > chain.last:
        return False
    return chain.record(invitation.epoch).digest != invitation.epoch_digest


class Door:
    """Takes operations for the validators, or says why not."""

    def __init__(
        self, replica: Replica, mesh: ParametersInForce, submit: Callable[[bytes], None]
    ) -> None:
        self._replica = replica
        self._mesh = mesh
        self._submit = submit

    def submit(self, operation: bytes, now_ms: int) -> str:
        """Hand a signed operation to the validators; returns "" or why not.

        now_ms: the time on this machine's wall clock.
        """
        reason = self._replica.check(operation)
        if reason == "already-executed":
            return self._outcome(operation)
        if reason == "already-approved":
            # Asking twice is what somebody does whose answer was lost.
            return ""
        reason = reason or self._newcomers_reason(operation, now_ms)
        reason = reason or self._mesh.refusal(operation, self._replica.ledger)
        if reason:
            return reason
        self._submit(operation)
        return ""

    def _outcome(self, operation: bytes) -> str:
        """It was ordered before: a Join may have come to nothing, which its sender must learn."""
        parsed = parse_operation(operation)
        reason = self._replica.ledger.refusal(parsed) if isinstance(parsed, Join) else None
        return reason if reason in REFUSALS else ""

    def _newcomers_reason(self, operation: bytes, now_ms: int) -> str | None:
        parsed = parse_operation(operation)
        if not isinstance(parsed, Join) or parsed.invitation is None:
            return None
        if parsed.member in self._replica.ledger.members:
            # It is in: it moves, or asks a second time.
            return None
        if is_expired(parsed.invitation, now_ms):
            return "invitation-expired"
        other = is_of_another_history(parsed.invitation, self._replica.epochs)
        return "wrong-epoch" if other else None
