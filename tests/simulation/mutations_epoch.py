"""Mutations of what leads from one validator set to the next."""

from dataclasses import replace as changed
from typing import Any

from shoal.consensus import (
    catch_up,
    epoch_change,
    epochs,
    execution,
    ledger,
    normal_case,
    safety,
    state,
    validity,
)
from shoal.consensus.certificate import Certificate
from shoal.consensus.validators import Verifier
from shoal.consensus.votes import Vote
from tests.simulation.mutation import Mutant, Patch

# Epochs that end all the time, without liars.
CHANGING = (
    ("validators", 4),
    ("spares", 2),
    ("changes", 6),
    ("chaos_ms", 15_000),
    ("byzantine", ()),
    ("rotten", 0),
)
# The same with a liar who is in it for the epochs.
REWRITTEN = (*CHANGING, ("validators", 5), ("byzantine", ("rewrite",)))
LATE = (("reordering", 0.3), ("delay_ms", (1, 300)), ("partition_every_ms", 3_000))


def no_horizon(patch: Patch) -> None:
    patch.set(state.Core, "horizon", property(lambda self: self.low + self.window))


def starts_without_ready(patch: Patch) -> None:
    patch.set(state.Core, "started", property(lambda self: True))


def epoch_of_votes_not_checked(patch: Patch) -> None:
    def require_signature(vote: Vote, verifier: Verifier) -> None:
        original(changed(vote, epoch=verifier.validators.epoch), as_of(verifier, vote.epoch))

    def as_of(verifier: Verifier, epoch: int) -> Any:
        """Checks the signature over the epoch that the vote names."""
        return _OtherEpoch(verifier, epoch)

    for module in (normal_case, execution, epoch_change):
        original = patch.set(module, "require_signature", require_signature)


class _OtherEpoch:
    """A verifier to which a vote of `epoch` looks like one of the present."""

    def __init__(self, verifier: Verifier, epoch: int) -> None:
        self.validators = verifier.validators
        self._verifier, self._epoch = verifier, epoch

    def check(self, signer: int, message: bytes, signature: bytes) -> bool:
        # domain[10], kind, mesh id[32], then the epoch in eight bytes.
        named = message[:43] + self._epoch.to_bytes(8, "big") + message[51:]
        return self._verifier.check(signer, named, signature)


def links_not_checked(patch: Patch) -> None:
    def check(self: Any, link: Any, verify: Any) -> None:
        if link.record.number != self.last + 1:
            original(self, link, verify)

    original = patch.set(epochs.EpochChain, "check", check)


def links_checked_with(own_word: bool) -> Any:
    """The wrong set: that of the record itself, or the one before the right one."""

    def apply(patch: Patch) -> None:
        def verify_certificate(certificate: Certificate, validators: Any, verify: Any) -> None:
            chain, link = checking[-1]
            earlier = chain.validators(max(0, chain.last - 1)).keys
            keys = link.record.keys if own_word else earlier
            original(certificate, changed(validators, keys=keys), verify)

        def check(self: Any, link: Any, verify: Any) -> None:
            checking.append((self, link))
            try:
                original_check(self, link, verify)
            finally:
                checking.pop()

        checking: list[Any] = []
        original = patch.set(epochs, "verify_certificate", verify_certificate)
        original_check = patch.set(epochs.EpochChain, "check", check)

    return apply


def proofs_checked_with_last_set(patch: Patch) -> None:
    def check_certificate(certificate: Certificate, verifier: Verifier) -> None:
        before = verifier.recent[max(0, len(verifier.recent) - 2)]
        keys = changed(verifier.validators, keys=before.keys)
        original(certificate, Verifier(keys, verifier.verify))

    original = patch.set(catch_up, "check_certificate", check_certificate)


def evidence_not_checked(patch: Patch) -> None:
    patch.set(validity, "check_evidence", lambda evict, verifier, view_change: None)


def boundary_ignored(patch: Patch) -> None:
    def set_boundary(self: Any) -> None:
        if self.turns or self.next_parameters is not None:
            self.boundary = self.sequence

    patch.set(ledger.Ledger, "_set_boundary", set_boundary)


def ready_not_sent_again(patch: Patch) -> None:
    patch.set(catch_up, "announce_ready", lambda core: None)
    patch.set(catch_up, "own_ready", lambda core: None)


def ready_of_anything(patch: Patch) -> None:
    def on_epochs(core: Any, message: Any) -> None:
        ready = message.ready
        if ready is not None and ready.epoch == core.epoch and not core.started:
            epoch_change._start(core, ready)
        else:
            original(core, message)

    original = patch.everywhere(epoch_change, "on_epochs", on_epochs)


def rows_of_old_epochs_stay(patch: Patch) -> None:
    patch.set(safety.SafetyRules, "retire", lambda self: None)


def old_log_is_kept(patch: Patch) -> None:
    def forget(core: Any) -> None:
        slots, view, active = core.slots, core.view, core.active
        original(core)
        core.slots, core.view, core.active = slots, view, active

    original = patch.set(epoch_change, "_forget_everything", forget)


def all_change_at_once(patch: Patch) -> None:
    patch.set(ledger, "faults", lambda n: n)


def proofs_of_epochs_not_sent(patch: Patch) -> None:
    patch.set(catch_up, "_send_epochs", lambda core, peer, status: None)


def null_not_filled(patch: Patch) -> None:
    """Looks for something to propose only where something waits, and so not for the end."""

    def propose(core: Any) -> None:
        if core.pending:
            original(core)

    original = patch.set(normal_case, "propose", propose)


def epoch_row_not_persisted(patch: Patch) -> None:
    def persist(self: Any, key: str, value: bytes | None) -> None:
        if not key.startswith("epoch/"):
            original(self, key, value)

    original = patch.set(state.Core, "persist", persist)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(name="votes beyond the horizon", apply=no_horizon),
    Mutant(name="epoch starts without READY quorum", apply=starts_without_ready, aim=CHANGING),
    Mutant(name="READY quorum not checked", apply=ready_of_anything, mode="heal", aim=REWRITTEN),
    Mutant(
        name="votes of another epoch count",
        apply=epoch_of_votes_not_checked,
        aim=(*CHANGING, *LATE),
    ),
    Mutant(name="epoch link not verified", apply=links_not_checked, mode="heal", aim=REWRITTEN),
    Mutant(
        name="epoch link checked with its own set",
        apply=links_checked_with(own_word=True),
        mode="heal",
        aim=REWRITTEN,
    ),
    Mutant(
        name="epoch link checked with an earlier set",
        apply=links_checked_with(own_word=False),
        aim=(*CHANGING, *LATE),
    ),
    Mutant(
        name="commit proof checked with an earlier set",
        apply=proofs_checked_with_last_set,
        aim=(*CHANGING, *LATE),
    ),
    Mutant(name="evidence not checked", apply=evidence_not_checked, mode="heal", aim=REWRITTEN),
    Mutant(name="new set takes effect at once", apply=boundary_ignored, aim=CHANGING),
    Mutant(
        name="READY not sent again",
        apply=ready_not_sent_again,
        aim=(*CHANGING, ("kind_loss", ((7, 0.9), (22, 0.5)))),
    ),
    Mutant(name="rows of old epochs stay", apply=rows_of_old_epochs_stay, aim=CHANGING),
    Mutant(name="slots and view of the old epoch are kept", apply=old_log_is_kept, aim=CHANGING),
    Mutant(
        name="all validators change at once",
        apply=all_change_at_once,
        mode="heal",
        aim=(*CHANGING, ("validators", 7), ("changes", 12), ("stability_interval", 8)),
    ),
    Mutant(
        name="proofs of epochs are not sent again",
        apply=proofs_of_epochs_not_sent,
        aim=(*CHANGING, *LATE),
    ),
    Mutant(name="end of an epoch not filled", apply=null_not_filled, aim=(*CHANGING, ("burst", 0))),
    Mutant(name="proof of an epoch not persisted", apply=epoch_row_not_persisted, aim=CHANGING),
)
