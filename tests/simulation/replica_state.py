"""What must hold in the state of an honest replica after each of its steps.

Bounds on everything that it keeps, timers that run exactly while something waits, views and
watermarks that only grow, and nothing counted that a stranger would not count. Most steps change
nothing of all that, so a step is looked at closely only when a short fingerprint has changed.
"""

from collections.abc import Callable

from shoal.consensus.errors import ConsensusError
from shoal.consensus.messages import VIEW_CHANGE_DOMAIN, ViewChange, sealed_bytes
from shoal.consensus.pacemaker import open_slot
from shoal.consensus.pending import MAX_PENDING
from shoal.consensus.replica import Replica
from shoal.consensus.state import Core
from shoal.consensus.view_start import MAX_OWN_VIEW_CHANGES
from shoal.consensus.votes import Vote, VoteKind
from tests.simulation.book import EpochBook
from tests.simulation.decoded import decode
from tests.simulation.verifier import new_view_problem, view_change_problem, vote_message
from tests.simulation.wire import VIEW_CHANGE

# First bytes of the messages that after_message has something to say about.
WATCHED = frozenset({int(VoteKind.PREPARE), int(VoteKind.COMMIT), int(VoteKind.READY), VIEW_CHANGE})
# How many windows above its watermark a validator may have executed.
KEPT_WINDOWS = 3


class Violation(AssertionError):
    """An invariant does not hold."""


def require(condition: bool, what: str) -> None:
    """Raise Violation unless the condition holds."""
    if not condition:
        raise Violation(what)


class StateChecker:
    """Looks at one replica at a time; remembers what may only grow or must not change."""

    def __init__(self, book: EpochBook, prove: Callable[[bytes], str | None]) -> None:
        self._book = book
        self._prove = prove
        self._views: dict[int, tuple[tuple[int, int], int]] = {}
        self._fingerprints: dict[int, object] = {}
        # By node: votes of others that this process holds, and their digests.
        self._held: dict[int, dict[tuple[int, int, int, int, int], bytes]] = {}
        self._right_views: set[bytes] = set()
        self._right_changes: set[bytes] = set()

    def on_started(self, node: int) -> None:
        """A new process: what it held of others is gone, what it had reached is not."""
        self._fingerprints.pop(node, None)
        self._held[node] = {}

    def after_step(self, node: int, replica: Replica) -> Core:
        core = replica._core
        fingerprint = (
            core.epoch,
            core.epochs.last,
            core.ready is None,
            core.ledger.boundary,
            core.view,
            core.active,
            core.low,
            core.executed,
            core.guard,
            core.new_view,
            len(core.slots),
            len(core.committed),
            len(core.pending),
            len(core.prepared),
            len(core.bodies),
            len(core.outbox.timers),
            sum(map(len, core.view_changes.values())),
        )
        if fingerprint != self._fingerprints.get(node):
            self._fingerprints[node] = fingerprint
            self._monotone(node, core)
            self._bounded(core)
            self._timers(core)
            self._stable_votes(core)
            self._joins(core)
            self._epochs(core)
            self._lives_in_a_right_view(core)
        return core

    def _monotone(self, node: int, core: Core) -> None:
        where, low = self._views.get(node, ((0, 0), 0))
        require(core.epoch >= where[0], "an epoch went backwards")
        require((core.epoch, core.view) >= where, "a view went backwards")
        require(core.low >= low, "a watermark went backwards")
        self._views[node] = ((core.epoch, core.view), core.low)

    def _bounded(self, core: Core) -> None:
        low, window, n = core.low, core.window, core.validators.n
        require(low <= core.executed, "watermark above what was executed")
        for log in (core.slots, core.prepared):
            if log:
                require(low < min(log) and max(log) <= low + window, "log outside the window")
        for sequence in core.committed:
            # A commit proof counts up to two windows ahead of what is executed.
            inside = core.executed < sequence <= core.executed + 2 * window
            require(inside, "commit certificates kept outside their bounds")
        require(len(core.pending) <= MAX_PENDING, "too many pending operations")
        ahead = sum(sequence > low for sequence in core.decisions)
        require(len(core.decisions) - ahead <= core.config.retained, "too many old decisions")
        # Whoever does not vote hears of stability points only in answers to its STATUS, and in
        # between executes whatever is decided. That it does hear of them is asked for in the end.
        bounded = core.safety is None or ahead <= KEPT_WINDOWS * window
        require(bounded, "too many decisions")
        require(len(core.own_view_changes) <= MAX_OWN_VIEW_CHANGES, "too many own VIEW-CHANGEs")
        require(len(core.view_changes) <= n, "VIEW-CHANGEs of nobody")
        require(
            all(len(theirs) <= 2 for s, theirs in core.view_changes.items() if s != _me(core)),
            "too many VIEW-CHANGEs of one validator",
        )
        require(len(core.snapshots) <= 4, "too many snapshots")
        # A slot may have had another proposal in every view since the watermark.
        proposals = 3 * window * (core.view + 2)
        require(len(core.bodies) <= len(core.decisions) + proposals, "too many operations kept")

    def _timers(self, core: Core) -> None:
        timers = core.outbox.timers
        require("status" in timers, "a replica without a STATUS timer")
        if core.safety is None:
            return
        waits = core.active and (
            bool(core.pending or core.ledger.boundary) or open_slot(core) is not None
        )
        # Between two epochs no primary could do anything about it.
        waits = waits and core.started and core.ledger.epoch.number == core.epoch
        require(
            waits == ("progress" in timers),
            "the progress timer runs exactly while something waits",
        )
        held = sum(core.view in theirs for theirs in core.view_changes.values())
        starts = not core.active and held >= core.validators.quorum
        require(
            starts == ("new-view" in timers),
            "the new-view timer runs exactly while a quorum waits for a NEW-VIEW",
        )

    def _stable_votes(self, core: Core) -> None:
        if core.safety is None:
            return
        own = core.stable_votes.get(core.safety.me, {})
        require(
            set(core.snapshots) <= set(own), "a reached stability point without an own STABLE vote"
        )

    def _joins(self, core: Core) -> None:
        higher = sum(max(theirs) > core.view for theirs in core.view_changes.values())
        require(higher < core.validators.weak, "f + 1 left for higher views and it stays")

    def _lives_in_a_right_view(self, core: Core) -> None:
        message = core.new_view
        if message is None or message.signature in self._right_views:
            return
        problem = new_view_problem(
            message,
            n=core.validators.n,
            epoch=core.epoch,
            start=core.start,
            window=core.window,
            prove=self._prove,
        )
        require(problem is None, f"lives under a wrong NEW-VIEW: {problem}")
        for change in message.view_changes:
            self._signed(change)
        self._right_views.add(message.signature)

    def after_message(self, node: int, data: bytes, replica: Replica) -> None:
        """Votes that are counted are signed and stay; VIEW-CHANGEs that are counted are right."""
        try:
            message = decode(data)
        except ConsensusError:
            return
        core = replica._core
        if isinstance(message, ViewChange):
            self._counted_change(core, message)
        elif isinstance(message, Vote):
            self._counted_vote(node, core, message)

    def _counted_change(self, core: Core, change: ViewChange) -> None:
        held = core.view_changes.get(change.signer, {}).get(change.view)
        if held is None or held.signature in self._right_changes:
            return
        problem = view_change_problem(
            held, epoch=core.epoch, start=core.start, window=core.window, prove=self._prove
        )
        require(problem is None, f"counts a wrong VIEW-CHANGE: {problem}")
        self._signed(held)

    def _signed(self, change: ViewChange) -> None:
        message = sealed_bytes(VIEW_CHANGE_DOMAIN, self._book.mesh_id, change.body())
        key = self._book.key(change.epoch, change.signer)
        signed = key is not None and self._book.verify(key, message, change.signature)
        require(signed, "counts a VIEW-CHANGE that its sender did not sign")
        self._right_changes.add(change.signature)

    def _counted_vote(self, node: int, core: Core, vote: Vote) -> None:
        if vote.kind is VoteKind.READY:
            self._counted_ready(core, vote)
            return
        slot = core.slots.get(vote.sequence)
        if slot is None:
            return
        if vote.kind is VoteKind.PREPARE:
            held = slot.prepares.get(vote.signer)
        else:
            held = slot.commits.get(vote.signer, {}).get(vote.view)
        if held is None or held.view != vote.view:
            return
        require(held.epoch == core.epoch, "counts a vote of another epoch")
        key = (int(vote.kind), held.epoch, held.view, held.sequence, held.signer)
        known = self._held.setdefault(node, {}).get(key)
        if known is None:
            self._held[node][key] = held.digest
            self._signed_vote(held)
        else:
            require(known == held.digest, "a counted vote was replaced by another")

    def _signed_vote(self, vote: Vote) -> None:
        message = vote_message(
            int(vote.kind),
            self._book.mesh_id,
            vote.epoch,
            vote.view,
            vote.sequence,
            vote.digest,
        )
        signer = self._book.key(vote.epoch, vote.signer)
        signed = signer is not None and self._book.verify(signer, message, vote.signature)
        require(signed, "counts a vote that its sender did not sign")

    def _counted_ready(self, core: Core, vote: Vote) -> None:
        held = core.ready_votes.get(vote.signer)
        if held is not None:
            claim = (core.epoch, core.start, core.epochs.link(core.epoch).certificate.digest)
            require(
                (held.epoch, held.sequence, held.digest) == claim, "counts READY for something else"
            )
            self._signed_vote(held)

    def _epochs(self, core: Core) -> None:
        """What the epoch is said to be is what the page with its proof says."""
        last = core.epochs.last
        for number in range(self._book.last + 1, last + 1):
            problem = self._book.add(number, core.epochs.link(number).to_bytes())
            require(problem is None, f"keeps a wrong proof of epoch {number}: {problem}")
        proved = self._book.page(last)
        require(
            proved is not None
            and (last == 0 or proved.record == core.epochs.record(last).to_bytes()),
            f"two records for epoch {last}",
        )
        page = self._book.page(core.epoch)
        require(
            page is not None and (page.keys, page.start) == (core.validators.keys, core.start),
            "lives in an epoch that nobody proved",
        )
        require(core.low >= core.start, "lives in an epoch without its first ledger")
        ledger, interval = core.ledger, self._book.interval
        require(
            ledger.epoch.start % interval == 0 and ledger.boundary % interval == 0,
            "an epoch begins between two stability points",
        )
        require(
            ledger.epoch.number - core.epoch in (0, 1), "executes beyond the end of the next epoch"
        )
        certificate = core.ready
        if certificate is not None and certificate.sequence == core.start:
            problem = self._prove(certificate.to_bytes())
            require(problem is None, f"READY does not verify: {problem}")


def _me(core: Core) -> int | None:
    return core.safety.me if core.safety is not None else None
