"""When to lose patience: the timers of PBFT 4.4 and 4.5.2 (consensus.md 1.5).

- `progress` runs only while something is pending, and guards one thing at a time: the oldest
  pending operation, or the lowest open slot. It starts anew only when that very thing is done,
  so a primary cannot keep its view by ordering everything else.
- `new-view` runs while Q validators wait for a NEW-VIEW (set in view_change.py, exactly once).
- `status` always runs, fast while anything is open and slow when idle.

T = T0 * 2^k, where k grows with each view change, and shrinks by one when what was guarded was
done within T / 2, so that the shorter timeout would have been enough as well. Shrinking with every
commit (consensus.md 1.5) would lose the primary again after each operation on a link that is
slower than T0, and several steps at once when a NEW-VIEW brings several slots.
"""

from shoal.consensus.state import Core


def view_timeout_ms(core: Core) -> int:
    """T0 * 2^k, at most the cap."""
    return min(core.config.timeout_ms << core.backoff, core.config.timeout_cap_ms)


def open_slot(core: Core) -> int | None:
    """The lowest sequence that somebody proposed or committed and that is not executed."""
    return min([*core.open_proposals(), *core.committed], default=None)


def is_restless(core: Core) -> bool:
    """Whether there is anything that a peer's answer could complete."""
    return bool(
        not core.active
        or not core.started
        or core.ledger.boundary
        or core.pending
        or core.target is not None
        or core.snapshots
        or open_slot(core) is not None
    )


def guard_progress(core: Core) -> None:
    """Set, keep or cancel the progress timer, so that it runs exactly while it should."""
    if core.safety is None or not core.active or not _may_vote(core):
        core.outbox.cancel_timer("progress")
        core.guard = None
        return
    if core.guard is not None:
        if not _is_done(core, core.guard):
            return
        if core.now_ms - core.guarded_since_ms < view_timeout_ms(core) // 2:
            core.backoff = max(0, core.backoff - 1)
    oldest = core.pending.oldest()
    core.guard = oldest if oldest is not None else open_slot(core)
    if core.guard is None and core.ledger.boundary:
        core.guard = core.ledger.boundary
    if core.guard is None:
        core.outbox.cancel_timer("progress")
    else:
        core.guarded_since_ms = core.now_ms
        core.outbox.set_timer("progress", core.now_ms + view_timeout_ms(core))


def _may_vote(core: Core) -> bool:
    """Not between two epochs: there no primary could do anything about it."""
    return core.started and core.ledger.epoch.number == core.epoch


def _is_done(core: Core, guard: bytes | int) -> bool:
    if isinstance(guard, bytes):
        return guard not in core.pending
    return guard <= core.executed


def schedule_status(core: Core) -> None:
    """See to it that the next STATUS goes out soon when restless, late when idle.

    Soon is half a view's timeout, so that on slow links repetition slows down with everything
    else instead of repeating what is still on its way.
    """
    idle = core.config.idle_status_ms
    soon = min(idle, view_timeout_ms(core) // 2)
    due = core.outbox.timers.get("status")
    if due is None or due > core.now_ms + soon:
        at_ms = core.now_ms + (soon if is_restless(core) else idle)
        if due is None or due > at_ms:
            core.outbox.set_timer("status", at_ms)
