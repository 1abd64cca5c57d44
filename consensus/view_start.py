"""Leaving a view: the first half of a view change, and what every transition may trigger.

From the moment that the row is written this replica votes in no lower view, ever: `view` only
grows. The VIEW-CHANGE is kept as the exact bytes that were sent, so that a restart repeats it
instead of contradicting it, and older ones are kept as well, for peers that still wait in an
older view (Fabric #1917).
"""

from shoal.consensus.fields import u8, u64
from shoal.consensus.messages import VIEW_CHANGE_DOMAIN, ViewChange
from shoal.consensus.state import Core

# Views are left at most this many times between two that start; older own VIEW-CHANGEs go.
MAX_OWN_VIEW_CHANGES = 64
# 2 ** 20 times any timeout is beyond every cap, so the exponent need not grow any further.
MAX_BACKOFF = 20


def persist_view(core: Core) -> None:
    """Write down where we are, before anything is sent in or towards the view."""
    core.persist("view", u64(core.view) + u8(core.active) + u8(core.backoff))


def leave_view(core: Core, view: int) -> None:
    """Move to `view`, inactive, and tell everybody what we have prepared (PBFT 4.4)."""
    assert view > core.view, "views never go backwards"
    core.view, core.active = view, False
    core.backoff = min(core.backoff + 1, MAX_BACKOFF)
    core.guard = None
    core.outbox.cancel_timer("progress")
    core.outbox.cancel_timer("new-view")
    core.plan, core.plan_end = {}, 0
    persist_view(core)
    if core.safety is None:
        return
    change = build_view_change(core, view)
    core.own_view_changes[view] = change
    core.persist(f"view-change/{view}", change.to_bytes())
    while len(core.own_view_changes) > MAX_OWN_VIEW_CHANGES:
        forget_own(core, min(core.own_view_changes))
    core.view_changes.setdefault(core.safety.me, {})[view] = change
    core.broadcast(change)


def follow_to(core: Core, view: int) -> None:
    """Move to `view` by way of those between, and say the VIEW-CHANGE for each.

    Somebody may wait in one of them for a quorum that we are needed for, and those who drew us on
    may be gone: two in v and one that went from v - 1 to v + 1 would wait for each other for ever.
    """
    backoff = core.backoff
    for between in range(max(core.view + 1, view - MAX_OWN_VIEW_CHANGES + 1), view + 1):
        core.backoff = backoff
        leave_view(core, between)


def give_up_on(core: Core, failed: int) -> None:
    """Leave the view because validator `failed` did not propose, or proposed two things.

    The turn rotates, so the next view may be for the same validator to start. Then that one is left
    at once as well, instead of after a second timeout; the VIEW-CHANGE for it is said all the same,
    since others may hold another one responsible, and wait there for a quorum.
    """
    coming = core.view + 1
    follow_to(core, coming + 1 if core.validators.leader(coming) == failed else coming)


def build_view_change(core: Core, view: int) -> ViewChange:
    """VIEW-CHANGE(v', h, C, P): the watermark with its proof, and every prepared certificate."""
    assert core.safety is not None
    unsigned = ViewChange(
        epoch=core.validators.epoch,
        view=view,
        signer=core.safety.me,
        low=core.low,
        # The first ledger of an epoch is proved by the epoch itself (consensus.md 1.4).
        stability=core.stability if core.low > core.start else None,
        prepared=tuple(certificate for _, certificate in sorted(core.prepared.items())),
    )
    signature = core.safety.seal(VIEW_CHANGE_DOMAIN, unsigned.body())
    return ViewChange(
        epoch=unsigned.epoch,
        view=view,
        signer=unsigned.signer,
        low=unsigned.low,
        stability=unsigned.stability,
        prepared=unsigned.prepared,
        signature=signature,
    )


def forget_own(core: Core, view: int) -> None:
    """Drop a VIEW-CHANGE of ours that nobody can need any more."""
    del core.own_view_changes[view]
    core.persist(f"view-change/{view}", None)
