"""Mutations of the view change and of the timers."""

from collections.abc import Callable
from typing import Any

from shoal.consensus import catch_up, pacemaker, view_change, view_start
from shoal.consensus.errors import ConsensusError
from shoal.consensus.messages import NewView, ViewChange
from shoal.consensus.records import NULL_DIGEST
from shoal.consensus.votes import VoteKind
from tests.simulation.mutation import Mutant, Patch

FORGED = (("byzantine", ("newview",)), ("validators", 4))
# Slots that are prepared by few, in several views: votes get lost, and views end all the time.
HALF_PREPARED = (
    ("validators", 4),
    ("kind_loss", ((1, 0.3), (2, 0.5), (3, 0.95))),
    ("chaos_ms", 20_000),
    ("partition_every_ms", 3_000),
    ("operations", 8),
)


def prepared_set_dropped(patch: Patch) -> None:
    def build_view_change(core: Any, view: int) -> ViewChange:
        prepared, core.prepared = core.prepared, {}
        try:
            change: ViewChange = original(core, view)
        finally:
            core.prepared = prepared
        return change

    original = patch.everywhere(view_start, "build_view_change", build_view_change)


def lowest_view_wins(patch: Patch) -> None:
    def plan_of(changes: list[ViewChange]) -> tuple[int, list[bytes]]:
        start = max(change.low for change in changes)
        best: dict[int, Any] = {}
        for change in changes:
            for certificate in change.prepared:
                known = best.get(certificate.sequence)
                if known is None or known.view > certificate.view:
                    best[certificate.sequence] = certificate
        end = max([start, *best])
        return start, [
            best[s].digest if s in best else NULL_DIGEST for s in range(start + 1, end + 1)
        ]

    patch.everywhere(view_change, "plan_of", plan_of)


def gaps_not_filled(patch: Patch) -> None:
    def plan_of(changes: list[ViewChange]) -> tuple[int, list[bytes]]:
        start, digests = original(changes)
        return start, [digest for digest in digests if digest != NULL_DIGEST]

    original = patch.everywhere(view_change, "plan_of", plan_of)


def no_join(patch: Patch) -> None:
    patch.set(view_change, "join_others", lambda core: None)


def timer_armed_again(patch: Patch) -> None:
    def on_view_change(core: Any, change: ViewChange) -> None:
        original(core, change)
        if change.view == core.view and not core.active:
            core.new_view_timer_view = -1

    original = patch.set(view_change, "on_view_change", on_view_change)


def timer_too_early(patch: Patch) -> None:
    def leave_view(core: Any, view: int) -> None:
        original(core, view)
        core.new_view_timer_view = view
        core.outbox.set_timer("new-view", core.now_ms + pacemaker.view_timeout_ms(core))

    original = patch.everywhere(view_start, "leave_view", leave_view)


def no_back_off(patch: Patch) -> None:
    patch.everywhere(pacemaker, "view_timeout_ms", lambda core: core.config.timeout_ms)


def any_progress_will_do(patch: Patch) -> None:
    patch.set(pacemaker, "_is_done", lambda core, guard: True)


def older_changes_not_resent(patch: Patch) -> None:
    def send_view_help(core: Any, peer: bytes, status: Any) -> None:
        everything = core.own_view_changes
        core.own_view_changes = {v: c for v, c in everything.items() if v == core.view}
        if status.view >= core.view:
            original(core, peer, status)
        elif core.active:
            core.own_view_changes = {}
            original(core, peer, status)
        core.own_view_changes = everything

    original = patch.set(catch_up, "_send_view_help", send_view_help)


def left_view_not_told(patch: Patch) -> None:
    def send_view_help(core: Any, peer: bytes, status: Any) -> None:
        kept = core.new_view
        core.new_view = kept if core.active else None
        original(core, peer, status)
        core.new_view = kept

    original = patch.set(catch_up, "_send_view_help", send_view_help)


def certificates_in_view_changes(kind: VoteKind) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        def check_certificate(certificate: Any, verifier: Any) -> None:
            if certificate.kind is not kind:
                original(certificate, verifier)

        original = patch.set(view_change, "check_certificate", check_certificate)

    return apply


def new_view_accepted_when(tolerated: Callable[[Any, NewView], bool]) -> Callable[[Patch], None]:
    """NEW-VIEWs of this kind are taken as well, with all other checks in place."""

    def apply(patch: Patch) -> None:
        def require_new_view(core: Any, message: NewView) -> None:
            if not tolerated(core, message):
                original(core, message)
                return
            for change in message.view_changes:
                if change.view != message.view:
                    raise ConsensusError("view-change-of-another-view")
                view_change.require_view_change(core, change)

        original = patch.set(view_change, "require_new_view", require_new_view)

    return apply


def _follows(message: NewView) -> bool:
    _, digests = view_change.plan_of(list(message.view_changes))
    return [digest for digest, _ in message.proposals] == digests


def _too_few(core: Any, message: NewView) -> bool:
    signers = {change.signer for change in message.view_changes}
    few = 0 < len(signers) == len(message.view_changes) < core.validators.quorum
    return few and _follows(message)


def _repeated(core: Any, message: NewView) -> bool:
    enough = len(message.view_changes) >= core.validators.quorum
    signers = {change.signer for change in message.view_changes}
    return enough and len(signers) < len(message.view_changes) and _follows(message)


def _other_proposals(core: Any, message: NewView) -> bool:
    signers = {change.signer for change in message.view_changes}
    return len(signers) >= core.validators.quorum and not _follows(message)


def backwards(patch: Patch) -> None:
    def on_new_view(core: Any, message: NewView) -> None:
        if message.view < core.view:
            core.view, core.active = message.view, False
        original(core, message)

    original = patch.set(view_change, "on_new_view", on_new_view)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(name="prepared set dropped from VIEW-CHANGE", apply=prepared_set_dropped),
    Mutant(name="lowest view wins a slot", apply=lowest_view_wins, aim=HALF_PREPARED),
    Mutant(name="null does not fill gaps", apply=gaps_not_filled, aim=HALF_PREPARED),
    Mutant(name="no f+1 join", apply=no_join),
    Mutant(name="new-view timer armed again by duplicates", apply=timer_armed_again),
    Mutant(name="new-view timer too early", apply=timer_too_early),
    Mutant(name="no back-off", apply=no_back_off, mode="slow"),
    Mutant(name="any progress restarts the progress timer", apply=any_progress_will_do),
    Mutant(
        name="older VIEW-CHANGEs not resent",
        apply=older_changes_not_resent,
        aim=(("validators", 4), ("kind_loss", ((16, 0.9),)), ("loss", 0.1)),
    ),
    Mutant(
        name="NEW-VIEW of a view that was left not told",
        apply=left_view_not_told,
        aim=HALF_PREPARED,
    ),
    Mutant(
        name="prepared certificates unverified",
        apply=certificates_in_view_changes(VoteKind.PREPARE),
        mode="heal",
        aim=FORGED,
    ),
    Mutant(
        name="stability proof in VIEW-CHANGE unverified",
        apply=certificates_in_view_changes(VoteKind.STABLE),
        mode="heal",
        aim=FORGED,
    ),
    Mutant(
        name="O unverified",
        apply=new_view_accepted_when(_other_proposals),
        mode="heal",
        aim=FORGED,
    ),
    Mutant(
        name="NEW-VIEW without quorum",
        apply=new_view_accepted_when(_too_few),
        mode="heal",
        aim=FORGED,
    ),
    Mutant(
        name="NEW-VIEW counts a sender twice",
        apply=new_view_accepted_when(_repeated),
        mode="heal",
        aim=FORGED,
    ),
    Mutant(name="views go backwards on replay", apply=backwards),
)
