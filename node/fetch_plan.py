"""Which chunk to ask whom for next: the thinking of a fetch from many holders, without the I/O.

Holders ask for more as fast as they deliver, so fast ones carry more by themselves. Chunks that few
have are asked for first. A holder that stalls or fails gets fewer requests at a time and a pause
that doubles, and what it owed goes to others; one whose bytes do not hash to the address is asked
nothing more. When nothing is left to hand out, whoever is idle is also asked for a chunk that is
out much longer than it would take itself, so that the slowest holder does not decide when the
fetch ends.

Time is an argument, in seconds that never decrease; there is no randomness.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How hard to try.

    parallel: requests in flight per holder; total: over all holders, 1 MiB of memory each;
    stall_s: a request without an answer for so long is given to another holder (doubled each time
    a holder stalls, up to stall_max_s, so that a narrow line is not a dead one); backoff_s,
    backoff_max_s: pause after a failure, doubling; failures_max: after so many failures in a row,
    and nothing delivered, a holder is given up; patience: an idle holder helps with a chunk that
    is out for so many times what it needs itself.
    """

    parallel: int = 4
    total: int = 16
    stall_s: float = 10.0
    stall_max_s: float = 120.0
    backoff_s: float = 0.25
    backoff_max_s: float = 8.0
    failures_max: int = 5
    patience: float = 3.0


class Ask(NamedTuple):
    """Ask `holder` for `address`."""

    holder: str
    address: bytes


@dataclass(slots=True)
class _Holder:
    has: set[bytes]
    window: int
    stall_s: float
    # address -> (when it was asked for, when that has stalled)
    flights: dict[bytes, tuple[float, float]] = field(default_factory=dict)
    failures: int = 0
    resume_at: float = 0.0
    # Running mean of how long a delivery takes; None before the first.
    mean_s: float | None = None
    gone: str = ""


class FetchPlan:
    """The state of one fetch: what is missing, who has it, what is on its way."""

    def __init__(self, missing: Iterable[bytes], settings: FetchSettings) -> None:
        """missing: the addresses to fetch, in the order that they are wanted in."""
        self._missing = {address: place for place, address in enumerate(dict.fromkeys(missing))}
        self._settings = settings
        self._holders: dict[str, _Holder] = {}
        self._copies: dict[bytes, int] = dict.fromkeys(self._missing, 0)

    @property
    def done(self) -> bool:
        """Whether everything has arrived."""
        return not self._missing

    @property
    def missing(self) -> int:
        """How many chunks have not arrived."""
        return len(self._missing)

    def gone(self) -> dict[str, str]:
        """Holders that are asked nothing more, and why."""
        return {name: holder.gone for name, holder in self._holders.items() if holder.gone}

    def holder(self, name: str, has: Collection[bytes]) -> None:
        """Somebody says what it has; what nobody asked for is not remembered."""
        known = self._holders.get(name)
        if known is None:
            settings = self._settings
            known = _Holder(set(), settings.parallel, settings.stall_s)
            self._holders[name] = known
        if known.gone:
            return
        for address in self._missing.keys() & set(has):
            if address not in known.has:
                known.has.add(address)
                self._copies[address] += 1

    def asks(self, now: float) -> list[Ask]:
        """What to ask for now; each is in flight from here on."""
        found: list[Ask] = []
        # One each in turn: the first holder does not take everything that there is.
        flying = sum(len(holder.flights) for holder in self._holders.values())
        while flying + len(found) < self._settings.total:
            ready = sorted(
                (len(holder.flights), name)
                for name, holder in self._holders.items()
                if self._may_ask(holder, now)
            )
            for _, name in ready:
                address = self._choose(self._holders[name], now)
                if address is not None:
                    holder = self._holders[name]
                    holder.flights[address] = (now, now + holder.stall_s)
                    found.append(Ask(name, address))
                    break
            else:
                break
        return found

    def _may_ask(self, holder: _Holder, now: float) -> bool:
        return not holder.gone and holder.resume_at <= now and len(holder.flights) < holder.window

    def _choose(self, holder: _Holder, now: float) -> bytes | None:
        flying = self._flying()
        free = [address for address in holder.has if address not in flying]
        if free:
            return min(free, key=lambda each: (self._copies[each], self._missing[each]))
        return next((each for each, at in self._late(holder, flying) if at <= now), None)

    def _late(self, holder: _Holder, flying: dict[bytes, int]) -> list[tuple[bytes, float]]:
        """What an idle holder can help with and from when on, longest out first; twice at most."""
        if holder.gone or holder.flights or holder.failures or holder.mean_s is None:
            return []
        wait_s = self._settings.patience * holder.mean_s
        late = [(each, self._asked_at(each) + wait_s) for each in holder.has if flying[each] == 1]
        return sorted(late, key=lambda entry: (entry[1], self._missing[entry[0]]))

    def _flying(self) -> dict[bytes, int]:
        counts: dict[bytes, int] = {}
        for holder in self._holders.values():
            for address in holder.flights:
                counts[address] = counts.get(address, 0) + 1
        return counts

    def _asked_at(self, address: bytes) -> float:
        return min(
            holder.flights[address][0]
            for holder in self._holders.values()
            if address in holder.flights
        )

    def arrived(self, name: str, address: bytes, now: float) -> list[Ask]:
        """A chunk is here and safe; returns requests for the same chunk that can be called off."""
        holder = self._holders[name]
        flight = holder.flights.pop(address, None)
        if flight is not None:
            took_s = now - flight[0]
            before_s = took_s if holder.mean_s is None else holder.mean_s
            holder.mean_s = 0.75 * before_s + 0.25 * took_s
        holder.failures, holder.resume_at = 0, 0.0
        holder.window = min(self._settings.parallel, holder.window + 1)
        self._missing.pop(address, None)
        self._copies.pop(address, None)
        needless = []
        for other_name, other in self._holders.items():
            other.has.discard(address)
            if other.flights.pop(address, None) is not None:
                needless.append(Ask(other_name, address))
        return needless

    def failed(self, name: str, address: bytes, now: float, why: str) -> None:
        """A request came to nothing, but for another reason than that the holder lacks it."""
        holder = self._holders[name]
        if holder.flights.pop(address, None) is None:
            return
        settings = self._settings
        # Requests that fail together are one failure: the pause after the first covers them.
        if holder.resume_at > now:
            return
        holder.failures += 1
        holder.window = max(1, holder.window // 2)
        pause_s = settings.backoff_s * 2.0 ** (holder.failures - 1)
        holder.resume_at = now + min(pause_s, settings.backoff_max_s)
        if holder.failures >= settings.failures_max:
            self._give_up(holder, f"{why} ({holder.failures} times)")

    def lacks(self, name: str, address: bytes) -> None:
        """The holder answered that it does not have the chunk."""
        holder = self._holders[name]
        holder.flights.pop(address, None)
        if address in holder.has:
            holder.has.remove(address)
            self._copies[address] -= 1

    def lied(self, name: str, why: str) -> list[Ask]:
        """The holder sent what it must not and is asked nothing more; returns what it owed."""
        holder = self._holders[name]
        owed = [Ask(name, address) for address in holder.flights]
        self._give_up(holder, why)
        return owed

    def _give_up(self, holder: _Holder, why: str) -> None:
        holder.gone = why
        holder.flights.clear()
        for address in holder.has:
            self._copies[address] -= 1
        holder.has.clear()

    def stalled(self, now: float) -> list[Ask]:
        """Requests that have waited too long: call them off. Others are asked from here on."""
        late = [
            Ask(name, address)
            for name, holder in self._holders.items()
            for address, (_, stalls_at) in holder.flights.items()
            if stalls_at <= now
        ]
        for name in {ask.holder for ask in late}:
            holder = self._holders[name]
            holder.stall_s = min(2 * holder.stall_s, self._settings.stall_max_s)
        for name, address in late:
            self.failed(name, address, now, "no answer in time")
        return late

    def nobody_has(self) -> bytes | None:
        """A missing chunk that nobody who is still asked has; None while there is hope."""
        return next((each for each in self._missing if self._copies[each] == 0), None)

    def forget(self, address: bytes) -> None:
        """Do without a chunk that nobody has."""
        self._missing.pop(address)
        self._copies.pop(address)

    def wake_at(self, now: float) -> float | None:
        """When time alone changes something: a request stalls, a pause ends, somebody idle may
        help. None: never."""
        flying = self._flying()
        times = [stalls for h in self._holders.values() for _, stalls in h.flights.values()]
        for holder in self._holders.values():
            if holder.has and holder.resume_at > now:
                times.append(holder.resume_at)
            elif all(address in flying for address in holder.has):
                times += [at for _, at in self._late(holder, flying)[:1]]
        return min(times, default=None)
