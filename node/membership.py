"""Who is a member and who votes: what this node asks for, approves, and does when it is out.

The log decides all of it (consensus/ledger.py). This is the node's will in the matter: it asks to
be let in, it approves validators where its operator has said how many there should be, and it
stops when the log says that it is no member any more.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from shoal.consensus.changes import Approve, Change, ChangeKind
from shoal.consensus.invitations import Invitation, InvitedRole
from shoal.consensus.ledger import Eviction
from shoal.consensus.records import Join, operation_bytes
from shoal.consensus.replica import Replica
from shoal.node.addresses import is_wildcard, split_peer
from shoal.node.clock import now_ms
from shoal.node.config import Settings
from shoal.node.errors import DamagedError, NotAdmittedError
from shoal.node.genesis import Genesis
from shoal.node.history import is_history_known, require_same_history
from shoal.node.identity import Identity, short
from shoal.node.invitations import (
    REFUSALS,
    describe,
    forget_invitation,
    kept_invitation,
    require_current,
)
from shoal.node.join import ask_to_join
from shoal.node.links import Links

log = structlog.get_logger()

JOIN_INTERVAL_S = 3.0
LOOK_INTERVAL_S = 0.5
# An approval that was not ordered is given again after so long.
APPROVE_AGAIN_S = 5.0
# And what was not ordered of a member that moves.
MOVE_AGAIN_S = 30.0
# How many heights a member may be behind and still become a validator.
HEIGHTS_BEHIND_MAX = 1
# In so many rounds in a row everybody who answers has to say that it is of no use to ask.
HOPELESS_ROUNDS = 2
NO_INVITATION = (
    "this node is no member and has no invitation; ask a member for one (shoal invite), then: "
    "shoal join --token LINE --dir with this directory"
)


class MembershipEnded(Exception):
    """The log says that this node has left, and the validators that remain need it no more."""


def approval(identity: Identity, mesh_id: bytes, epoch: int, change: Change) -> bytes:
    """This node's signed yes to a change, as an operation."""
    unsigned = Approve(change=change, epoch=epoch, validator=identity.node_id)
    signature = identity.sign(unsigned.signed_bytes(mesh_id))
    return operation_bytes(replace(unsigned, signature=signature))


_WHY_EVICTED = {
    Eviction.EVIDENCE: "it signed two things that exclude each other; look for a second process "
    "that used the same key",
    Eviction.PEOPLE: "a quorum of the validators decided so; ask them",
    Eviction.HARM: "a quorum of the validators found the model better without what it learned; "
    "look at its text and its training",
}


def why_out(eviction: Eviction) -> str:
    """What an eviction rests on: evidence, which proves itself, people, or harm, an opinion."""
    return eviction.name.lower()


class Membership:
    """Runs beside the node for as long as it lives."""

    def __init__(
        self,
        *,
        settings: Settings,
        identity: Identity,
        genesis: Genesis,
        links: Links,
        replica: Replica,
        height: Callable[[], int],
        shard_tokens: Callable[[], int],
        submit: Callable[[bytes], None],
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._genesis = genesis
        self._links = links
        self._replica = replica
        self._height = height
        self._shard_tokens = shard_tokens
        self._submit = submit
        self._approved: dict[bytes, float] = {}
        self._move_at = 0.0
        self._told_out = set(replica.ledger.evictions())

    async def run(self) -> None:
        """Join, then watch; raises MembershipEnded, DamagedError for a key that was evicted or that
        another process uses, and NotAdmittedError where the mesh does not let the node in."""
        await self._join()
        log.info("membership.granted")
        while self._belongs():
            self._require_alone()
            self._tell_of_evictions()
            self._tell_address()
            self._approve_validators()
            await asyncio.sleep(LOOK_INTERVAL_S)
        self._require_not_evicted()
        log.info("membership.ended")
        raise MembershipEnded

    async def _join(self) -> None:
        """A node that is no member asks the addresses it knows until the log says it is one.

        Raises NotAdmittedError where it will never be let in with the invitation that it has.
        """
        me, home = self._identity.node_id, self._settings.node.directory
        invitation = None
        if not self._belongs():
            self._require_not_evicted()
            invitation = kept_invitation(home)
            if invitation is None:
                raise NotAdmittedError(NO_INVITATION)
            await self._await_history(invitation)
            await self._ask_until_in(invitation)
            require_same_history(self._replica.epochs, invitation)
        if me in self._replica.ledger.members:
            forget_invitation(home)

    def _contacts(self) -> list[tuple[bytes, str]]:
        """Those that it was told of: the ledger here knows no join ports, and may be old."""
        return [split_peer(each) for each in self._settings.node.contacts]

    async def _await_history(self, invitation: Invitation) -> None:
        """Not to ask before it is known that those who would answer are of the right history."""
        waited = False
        require_same_history(self._replica.epochs, invitation)
        while self._replica.epochs.last < invitation.epoch:
            if await is_history_known(self._contacts(), self._genesis, invitation):
                return
            if not waited:
                log.info("join.waiting-for-epoch", epoch=invitation.epoch)
                waited = True
            await asyncio.sleep(JOIN_INTERVAL_S)

    async def _ask_until_in(self, invitation: Invitation) -> None:
        willing = self._settings.consensus.willing
        log.info("join.asking", invitation=describe(invitation))
        operation = self._signed(
            Join(
                member=self._identity.node_id,
                address=self._settings.node.advertised,
                shard_tokens=self._shard_tokens(),
                share_permille=self._settings.train.share_permille,
                time_ms=now_ms(),
                validates=willing and invitation.role is InvitedRole.VALIDATOR,
                invitation=invitation,
            )
        )
        contacts, hopeless = self._contacts(), 0
        while self._identity.node_id not in self._replica.ledger.members:
            self._require_not_evicted()
            said = await ask_to_join(contacts, operation)
            if "" in said:
                # The others let this node in as soon as the log has it, which takes a moment.
                self._links.hurry()
            # One that lags may not know the inviter yet, so one round of refusals is not the end.
            hopeless = hopeless + 1 if said and set(said) <= set(REFUSALS) else 0
            if hopeless >= HOPELESS_ROUNDS:
                raise NotAdmittedError(REFUSALS[said[0]])
            if "" not in said:
                # Where nobody answers nobody can say either that it was used in time.
                require_current(invitation, now_ms())
            # Whoever took it may have kept it: the next time somebody else is asked first.
            contacts = contacts[1:] + contacts[:1]
            await asyncio.sleep(JOIN_INTERVAL_S)

    def _tell_of_evictions(self) -> None:
        evictions = self._replica.ledger.evictions()
        for member in evictions.keys() - self._told_out:
            log.warning("member.evicted", member=short(member), why=why_out(evictions[member]))
        self._told_out = set(evictions)

    def _tell_address(self) -> None:
        """A member whose settings name another address than the log does has moved."""
        known = self._replica.ledger.members.get(self._identity.node_id)
        address, now = self._settings.node.advertised, asyncio.get_running_loop().time()
        if known is None or known.address == address or is_wildcard(address):
            return
        if now >= self._move_at:
            self._move_at = now + MOVE_AGAIN_S
            log.info("member.moving", address=address, until_now=known.address)
            self._submit(
                self._signed(
                    Join(
                        member=self._identity.node_id,
                        address=address,
                        shard_tokens=known.shard_tokens,
                        share_permille=known.share_permille,
                        time_ms=now_ms(),
                        validates=known.validates,
                    )
                )
            )

    def _signed(self, join: Join) -> bytes:
        signature = self._identity.sign(join.signed_bytes(self._genesis.mesh_id))
        return operation_bytes(replace(join, signature=signature))

    def _belongs(self) -> bool:
        """Whether this node is a member, or a validator that others still count on.

        The last words of a validator that leaves count until the next epoch has started. Those of
        one that was put out do not: the others hear it no more, and it would never see the start.
        """
        me, replica = self._identity.node_id, self._replica
        seen = replica.inspect()
        if replica.ledger.is_evicted(me):
            return me in seen.validators
        return me in replica.ledger.members or me in seen.validators or not seen.started

    def _require_not_evicted(self) -> None:
        why = self._replica.ledger.evictions().get(self._identity.node_id)
        if why is not None:
            raise DamagedError(
                f"the mesh has evicted this node's key, for good: {_WHY_EVICTED[why]}; then join "
                "again with a new directory"
            )

    def _require_alone(self) -> None:
        rival = self._links.rival
        if rival is not None:
            raise DamagedError(
                f"another process runs with this node's key (its start number {rival.count}); the "
                "mesh puts such a key out for good; stop the other process, and if `shoal status` "
                "of a member names the key no more, join again with a new directory"
            )

    def _approve_validators(self) -> None:
        """As a validator: yes to members that are willing, here and up to date, up to the wish."""
        replica, me = self._replica, self._identity.node_id
        seen, ledger = replica.inspect(), replica.ledger
        free = self._settings.consensus.validators_wanted - len(ledger.coming_validators())
        if me not in seen.validators or not seen.started or free <= 0:
            return
        now = asyncio.get_running_loop().time()
        for member in self._candidates()[:free]:
            change = Change(ChangeKind.PROMOTE, member)
            counted = change.digest in ledger.approvals.get(me, ())
            if counted or now - self._approved.get(member, -APPROVE_AGAIN_S) < APPROVE_AGAIN_S:
                continue
            self._approved[member] = now
            log.info("validator.approved", member=short(member), epoch=seen.epoch)
            self._submit(approval(self._identity, self._genesis.mesh_id, seen.epoch, change))

    def _candidates(self) -> list[bytes]:
        """Members that could become validators now, the longest members first."""
        ledger, connected = self._replica.ledger, set(self._links.connected)
        coming = ledger.coming_validators()
        least = self._height() - HEIGHTS_BEHIND_MAX
        found = [
            (known.time_ms, member)
            for member, known in ledger.members.items()
            if known.validates
            and member not in coming
            and member in connected
            and self._links.record(member).committed_height >= least
        ]
        return [member for _, member in sorted(found)]
