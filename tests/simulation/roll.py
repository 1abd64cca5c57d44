"""Who is a member, and by whose word: worked out a second time from what was executed.

Written from the rules alone (docs/adr/0016), not from consensus/: a newcomer needs the word of
somebody who is a member at that moment, given since that one joined, and no word lets in more
than it says. Only what an expulsion does is left open, since it takes a quorum: whoever somebody
wanted to expel, or objected to, may be in or out until the end of the story.
"""

from collections import Counter
from collections.abc import Iterable

from shoal.consensus.changes import Approve, ChangeKind
from shoal.consensus.evidence import Evict
from shoal.consensus.invitations import InvitedRole
from shoal.consensus.records import Join, Leave, Operation
from shoal.consensus.validators import Verify
from tests.simulation.replica_state import require


class Roll:
    """Follows what is executed, in the order of the log; what comes early waits."""

    def __init__(self, founders: Iterable[bytes], mesh_id: bytes, verify: Verify) -> None:
        self._mesh_id = mesh_id
        self._verify = verify
        self.sequence = 0
        # When each member entered.
        self.since = dict.fromkeys(founders, 0)
        self.doubtful: set[bytes] = set()
        self._may_validate = set(self.since)
        self._used: Counter[tuple[bytes, int]] = Counter()
        self._early: dict[int, tuple[Operation, bool]] = {}

    def follow(self, sequence: int, operation: Operation, *, executed: bool) -> None:
        """This was decided there; raises Violation where it let somebody in who was not invited."""
        if sequence <= self.sequence:
            return
        self._early[sequence] = (operation, executed)
        while self.sequence + 1 in self._early:
            self.sequence += 1
            operation, executed = self._early.pop(self.sequence)
            if executed:
                self._executed(operation)

    def require_same(self, members: Iterable[bytes]) -> None:
        """The members that a ledger at this sequence has are those who came in."""
        there = set(members)
        require(
            there - self.doubtful == set(self.since) - self.doubtful,
            "the ledger's members are not those who were let in",
        )

    def _executed(self, operation: Operation) -> None:
        match operation:
            case Join() if operation.member in self.since:
                allowed = operation.member in self._may_validate | self.doubtful
                require(allowed or not operation.validates, "a guest that votes")
            case Join():
                self._came_in(operation)
            case Leave() | Evict():
                self.since.pop(operation.member, None)
                self._may_validate.discard(operation.member)
            case Approve(change=change) if change.kind in (ChangeKind.EXPEL, ChangeKind.OBJECT):
                self.doubtful.add(change.member)
            case _:
                pass

    def _came_in(self, join: Join) -> None:
        invitation = join.invitation
        if invitation is None:
            require(False, "somebody came in without an invitation")
            return
        inviter = invitation.inviter
        require(invitation.mesh_id == self._mesh_id, "invited to another mesh")
        signed = self._verify(inviter, invitation.signed_bytes(), invitation.signature)
        require(signed, "an invitation that nobody signed")
        if inviter not in self.doubtful:
            require(inviter in self.since, "invited by somebody who is no member")
            require(invitation.number > self.since[inviter], "invited before the inviter joined")
        key = (inviter, invitation.number)
        self._used[key] += 1
        require(self._used[key] <= invitation.uses, "an invitation was used too often")
        votes = invitation.role is InvitedRole.VALIDATOR
        require(votes or not join.validates, "invited to take part, and it votes")
        self.since[join.member] = join.time_ms
        if votes:
            self._may_validate.add(join.member)
