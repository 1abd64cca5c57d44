"""Mutations of who becomes a member."""

from collections.abc import Callable, MutableMapping
from typing import Any

from shoal.consensus import members, validity
from shoal.consensus.invitations import Issued
from shoal.consensus.members import Member
from shoal.consensus.records import Join
from tests.simulation.mutation import Mutant, Patch

# Founders leave and come back, in time for what they signed before to be tried again.
RETURNING = (("changes", 6), ("chaos_ms", 15_000), ("byzantine", ()), ("rotten", 0))


def reason_passed(reason: str) -> Callable[[Patch], None]:
    """This reason keeps nobody out."""

    def apply(patch: Patch) -> None:
        def refusal(known: MutableMapping[bytes, Member], join: Join) -> str | None:
            found: str | None = original(known, join)
            return None if found == reason else found

        def enter(known: MutableMapping[bytes, Member], join: Join) -> None:
            invitation = join.invitation
            if invitation is not None and invitation.inviter in known:
                entered(known, join)
            else:
                known[join.member] = Member(join.address, 1, 1, join.time_ms)

        original = patch.everywhere(members, "invitation_refusal", refusal)
        entered = patch.everywhere(members, "enter", enter)

    return apply


def uses_not_counted(patch: Patch) -> None:
    patch.set(Issued, "counted", lambda self, invitation: self)


def number_forgotten_at_once(patch: Patch) -> None:
    """Only the newest number is remembered, and the floor stays where it was."""

    def counted(self: Issued, invitation: Any) -> Issued:
        return Issued(self.floor, original(self, invitation).used[-1:])

    original = patch.set(Issued, "counted", counted)


def floor_not_set(patch: Patch) -> None:
    def enter(known: MutableMapping[bytes, Member], join: Join) -> None:
        newcomer = join.member not in known
        entered(known, join)
        if newcomer:
            it = known[join.member]
            known[join.member] = Member(
                it.address,
                it.shard_tokens,
                it.share_permille,
                it.time_ms,
                it.validates,
                it.may_validate,
            )

    entered = patch.everywhere(members, "enter", enter)


def invitation_not_verified(patch: Patch) -> None:
    patch.set(validity, "_validate_invitation", lambda join, verifier: None)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(name="uninvited newcomers let in", apply=reason_passed("not-invited")),
    Mutant(name="inviter's membership not checked", apply=reason_passed("inviter-not-a-member")),
    Mutant(name="void invitations let in", apply=reason_passed("invitation-void")),
    Mutant(name="guests may vote", apply=reason_passed("not-invited-to-validate")),
    Mutant(name="uses not counted", apply=uses_not_counted),
    Mutant(name="used numbers forgotten", apply=number_forgotten_at_once),
    Mutant(name="old invitations good after a return", apply=floor_not_set, aim=RETURNING),
    Mutant(name="invitation's signature not verified", apply=invitation_not_verified),
)
