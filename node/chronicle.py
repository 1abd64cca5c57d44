"""How the last checkpoints came about, as this node saw it: who was waited for, how long, and what
was left out. For `shoal explain`; nothing depends on it, and it keeps KEPT heights.

A cut is due when a quorum of validators has so many deltas pending each. So exactly one of them is
waited for, the one that completes the quorum; the slower ones are not. Afterwards the proposer's
candidate is checked by all and ordered, which is the rest of the time. Times are this node's own,
so another one may tell it a little differently.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from shoal.consensus.records import CheckpointRecord
from shoal.gossip.delta import DeltaKey

KEPT = 64


@dataclass(slots=True)
class Account:
    """One height; times in seconds since this node began to look at it, None for never.

    ready: when each validator had enough deltas here; waited_for: whose delta made the cut due;
    included: of each member the number of deltas in the cut, the first and the last;
    left_out: deltas that were pending here and are not in it; states: what the members were taken
    for when the cut was due.
    """

    height: int
    began: float
    watched: bool = True
    validators: frozenset[bytes] = frozenset()
    quorum: int = 0
    rounds_wanted: int = 0
    ready: dict[bytes, float] = field(default_factory=dict)
    due_at: float | None = None
    due_why: str = ""
    waited_for: bytes = b""
    states: dict[bytes, str] = field(default_factory=dict)
    committed_at: float | None = None
    round: int = 0
    proposer: bytes = b""
    attempt: int = 0
    included: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    left_out: dict[bytes, int] = field(default_factory=dict)

    @property
    def committed(self) -> bool:
        """Whether its record is known."""
        return bool(self.proposer)


class Chronicle:
    """The accounts of the last heights; `states` says what members are taken for now."""

    def __init__(self, states: Callable[[], Mapping[bytes, str]]) -> None:
        self._states = states
        self._accounts: dict[int, Account] = {}

    def watch(
        self,
        now: float,
        height: int,
        pending_of: Mapping[bytes, int],
        *,
        quorum: int,
        rounds_wanted: int,
    ) -> None:
        """A look at the height that comes next; `pending_of` each validator."""
        account = self._accounts.get(height)
        if account is None:
            account = self._add(Account(height, now))
        if account.committed:
            return
        account.validators, account.quorum = frozenset(pending_of), quorum
        account.rounds_wanted = rounds_wanted
        for member, count in sorted(pending_of.items()):
            if count >= rounds_wanted:
                account.ready.setdefault(member, now - account.began)

    def due(self, now: float, height: int, why: str) -> None:
        """This node thinks that it is time for a cut."""
        account = self._accounts.get(height)
        if account is None or account.due_at is not None:
            return
        account.due_at, account.due_why = now - account.began, why
        account.states = dict(self._states())
        if account.quorum and len(account.ready) >= account.quorum:
            order = sorted(account.ready.items(), key=lambda item: item[1])
            account.waited_for = order[account.quorum - 1][0]

    def committed(
        self, now: float, record: CheckpointRecord, pending: Iterable[DeltaKey], *, seen: bool
    ) -> None:
        """A height is certified; seen: just now, and not read from the disk or fetched later."""
        account = self._accounts.get(record.height)
        if account is None:
            account = self._add(Account(record.height, now, watched=False))
        if account.committed:
            return
        account.proposer, account.attempt = record.proposer, record.attempt
        account.round = record.round
        if seen and account.watched:
            account.committed_at = now - account.began
        cut = {(entry.member, entry.sequence) for entry in record.cut}
        for member, sequence in sorted(cut):
            count, first, _ = account.included.get(member, (0, sequence, sequence))
            account.included[member] = (count + 1, first, sequence)
        if seen:
            left = Counter(key[0] for key in pending if key not in cut)
            account.left_out = dict(left)

    def find(self, number: int) -> Account | None:
        """The account of the cut that this round of any member went into; the newest, not yet
        committed one for a round that is in none yet."""
        for height in sorted(self._accounts):
            account = self._accounts[height]
            if not account.committed and self.rounds[1] < number:
                return account
            if any(first <= number <= last for _, first, last in account.included.values()):
                return account
        return None

    @property
    def rounds(self) -> tuple[int, int]:
        """The first and the last round that there is a committed account of; zeros for none."""
        spans: Collection[tuple[int, int, int]] = [
            span for each in self._accounts.values() for span in each.included.values()
        ]
        return min((s[1] for s in spans), default=0), max((s[2] for s in spans), default=0)

    def _add(self, account: Account) -> Account:
        self._accounts[account.height] = account
        for height in sorted(self._accounts)[:-KEPT]:
            del self._accounts[height]
        return account
