"""Mutations of the normal case, of what is durable, and of execution."""

from collections.abc import Callable
from typing import Any

from shoal.consensus import (
    catch_up,
    execution,
    ledger,
    normal_case,
    outbox,
    quorum,
    replica,
    restore,
    safety,
    state,
    validity,
    votes,
)
from shoal.consensus.effects import Effect, Persist
from shoal.consensus.votes import Vote, VoteKind
from tests.simulation import disk
from tests.simulation.mutation import Mutant, Patch, replaced

FORGE = (("byzantine", ("forge",)), ("validators", 4))
LAGGARDS = (("retained", 0), ("partition_every_ms", 3_000), ("chaos_ms", 15_000), ("operations", 8))


def quorum_2f_plus_1(patch: Patch) -> None:
    patch.everywhere(quorum, "quorum", lambda n: 2 * quorum.faults(n) + 1)


def votes_not_persisted(patch: Patch) -> None:
    def vote(self: Any, kind: VoteKind, **about: Any) -> Vote:
        with replaced_persist(self):
            made: Vote = original(self, kind, **about)
        return made

    original = patch.set(safety.SafetyRules, "vote", vote)


class replaced_persist:
    """While open, the rows of these SafetyRules go nowhere."""

    def __init__(self, rules: Any) -> None:
        self._rules = rules

    def __enter__(self) -> None:
        self._persist, self._rules._persist = self._rules._persist, lambda key, value: None

    def __exit__(self, *_: object) -> None:
        self._rules._persist = self._persist


def send_before_persist(patch: Patch) -> None:
    def drain(self: Any) -> list[Effect]:
        effects: list[Effect] = original(self)
        return sorted(effects, key=lambda effect: isinstance(effect, Persist))

    original = patch.set(outbox.Outbox, "drain", drain)


def rows_not_persisted(prefix: str) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        def persist(self: Any, key: str, value: bytes | None) -> None:
            if not key.startswith(prefix):
                original(self, key, value)

        original = patch.set(state.Core, "persist", persist)

    return apply


def votes_in_an_old_view(patch: Patch) -> None:
    def require_current(core: Any, vote: Vote) -> None:
        if vote.view > core.view or not core.in_window(vote.sequence):
            original(core, vote)

    original = patch.set(normal_case, "_require_current", require_current)


def duplicate_votes_counted(patch: Patch) -> None:
    def on_prepare(core: Any, vote: Vote) -> None:
        original(core, vote)
        slot = core.slots.get(vote.sequence)
        if slot is not None and slot.prepares.get(vote.signer) == vote:
            slot.prepares[1_000 + len(slot.prepares)] = vote
            normal_case.check_prepared(core, vote.sequence)

    original = patch.set(normal_case, "on_prepare", on_prepare)


def signatures_not_verified(kind: VoteKind) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        def require_signature(vote: Vote, verifier: Any) -> None:
            if vote.kind is not kind:
                original(vote, verifier)

        original = patch.set(normal_case, "require_signature", require_signature)

    return apply


def kind_not_signed(patch: Patch) -> None:
    def vote_bytes(kind: VoteKind, **fields: Any) -> bytes:
        made: bytes = original(VoteKind.PREPARE, **fields)
        return made

    def signed_bytes(self: Vote, mesh_id: bytes) -> bytes:
        return vote_bytes(
            self.kind,
            mesh_id=mesh_id,
            epoch=self.epoch,
            view=self.view,
            sequence=self.sequence,
            digest=self.digest,
        )

    original = patch.everywhere(votes, "vote_bytes", vote_bytes)
    patch.set(votes.Vote, "signed_bytes", signed_bytes)


def equivocation_overwrites(patch: Patch) -> None:
    def on_commit(core: Any, vote: Vote) -> None:
        forget_other(core.slots.get(vote.sequence), "commits", vote)
        originals[0](core, vote)

    def on_prepare(core: Any, vote: Vote) -> None:
        forget_other(core.slots.get(vote.sequence), "prepares", vote)
        originals[1](core, vote)

    def forget_other(slot: Any, where: str, vote: Vote) -> None:
        if slot is None:
            return
        held = slot.prepares if where == "prepares" else slot.commits.get(vote.signer, {})
        key = vote.signer if where == "prepares" else vote.view
        known = held.get(key)
        if known is not None and known.view == vote.view and known.digest != vote.digest:
            del held[key]

    originals = [
        patch.set(normal_case, "on_commit", on_commit),
        patch.set(normal_case, "on_prepare", on_prepare),
    ]


def executes_past_gaps(patch: Patch) -> None:
    def execute_ready(core: Any) -> None:
        following = core.committed.get(core.executed + 2)
        if core.executed + 1 not in core.committed and following is not None:
            core.ledger.sequence += 1
        original(core)

    original = patch.everywhere(execution, "execute_ready", execute_ready)


def sequence_reset_at_restart(patch: Patch) -> None:
    def restore_slots(core: Any, rows: Any) -> None:
        original(core, rows)
        core.next_sequence = core.low + 1

    original = patch.set(restore, "_restore_slots", restore_slots)


def second_proposal_after_restart(patch: Patch) -> None:
    def vote(self: Any, kind: VoteKind, *, view: int, sequence: int, digest: bytes) -> Vote:
        known = self._votes.get((kind, view, sequence))
        if known is not None and known.digest != digest:
            del self._votes[kind, view, sequence]
        made: Vote = original(self, kind, view=view, sequence=sequence, digest=digest)
        return made

    original = patch.set(safety.SafetyRules, "vote", vote)
    sequence_reset_at_restart(patch)


def executed_twice(patch: Patch) -> None:
    patch.set(ledger.Ledger, "check", lambda self, operation, digest: None)


def watermark_not_enforced(patch: Patch) -> None:
    patch.set(state.Core, "in_window", lambda self, sequence: sequence > self.low)


def snapshot_not_checked(patch: Patch) -> None:
    def install_snapshot(core: Any, certificate: Any, snapshot: bytes) -> None:
        with replaced(execution, "ledger_digest", lambda data: certificate.digest):
            original(core, certificate, snapshot)

    original = patch.everywhere(execution, "install_snapshot", install_snapshot)


def certificates_not_checked(module: Any) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        patch.set(module, "check_certificate", lambda certificate, verifier: None)

    return apply


def stable_not_made_again(patch: Patch) -> None:
    def start(self: Any, applied: int) -> None:
        with replaced(execution, "announce_stable", lambda core, sequence: None):
            original(self, applied)

    original = patch.set(replica.Replica, "_start", start)


def status_not_answered(patch: Patch) -> None:
    patch.set(catch_up, "on_status", lambda core, link, status: None)


def damaged_rows_are_read(patch: Patch) -> None:
    patch.set(disk.Disk, "load", lambda self: dict(self.rows))


def nothing(patch: Patch) -> None:
    """The disk lies; the core is as it is."""


MUTANTS: tuple[Mutant, ...] = (
    Mutant(name="quorum 2f+1 (n=6)", apply=quorum_2f_plus_1, aim=(("validators", 6),)),
    Mutant(name="votes not persisted", apply=votes_not_persisted),
    Mutant(name="send before persist", apply=send_before_persist),
    Mutant(name="prepared certificate not persisted", apply=rows_not_persisted("prepared/")),
    Mutant(name="VIEW-CHANGE not persisted", apply=rows_not_persisted("view-change/")),
    Mutant(name="votes in an old view", apply=votes_in_an_old_view),
    Mutant(name="duplicate votes counted", apply=duplicate_votes_counted),
    Mutant(
        name="PREPARE signatures not verified",
        apply=signatures_not_verified(VoteKind.PREPARE),
        mode="heal",
        aim=FORGE,
    ),
    Mutant(
        name="COMMIT signatures not verified",
        apply=signatures_not_verified(VoteKind.COMMIT),
        mode="heal",
        aim=FORGE,
    ),
    Mutant(name="kind not in the signed bytes", apply=kind_not_signed),
    Mutant(
        name="equivocating votes overwrite the first",
        apply=equivocation_overwrites,
        mode="heal",
        aim=(("byzantine", ("equivocate",)), ("validators", 4)),
    ),
    Mutant(name="executes past a gap", apply=executes_past_gaps),
    Mutant(name="sequence counter reset at restart", apply=sequence_reset_at_restart),
    Mutant(name="second proposal after restart", apply=second_proposal_after_restart),
    Mutant(name="executed operations executed again", apply=executed_twice),
    Mutant(name="watermark not enforced", apply=watermark_not_enforced),
    Mutant(
        name="snapshot digest not checked",
        apply=snapshot_not_checked,
        mode="heal",
        aim=(*FORGE, *LAGGARDS),
    ),
    Mutant(
        name="attestation certificate unverified",
        apply=certificates_not_checked(validity),
        mode="heal",
        aim=FORGE,
    ),
    Mutant(
        name="stability certificate unverified",
        apply=certificates_not_checked(execution),
        mode="heal",
        aim=(*FORGE, *LAGGARDS),
    ),
    Mutant(
        name="commit proof unverified",
        apply=certificates_not_checked(catch_up),
        mode="heal",
        aim=FORGE,
    ),
    Mutant(name="STABLE vote not made again at restart", apply=stable_not_made_again),
    Mutant(name="STATUS not answered", apply=status_not_answered),
    Mutant(
        name="damaged rows are read",
        apply=damaged_rows_are_read,
        mode="heal",
        aim=(("rotten", 1), ("byzantine", ()), ("validators", 4)),
    ),
    Mutant(
        name="disk loses writes that it confirmed",
        apply=nothing,
        aim=(("planted", ("lost-writes",)), ("crash_rate", 0.05)),
    ),
    Mutant(
        name="disk tears transactions",
        apply=nothing,
        aim=(("planted", ("torn-writes",)), ("crash_rate", 0.05)),
    ),
)
