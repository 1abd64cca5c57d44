"""How long to wait, learned from measurement; all of it pure arithmetic.

A deadline is the median of the last round trips plus K times their median absolute deviation, so
that a slow or jittery line gets the time it needs and a fast one is not waited for. What cannot be
learned is bounded here, each bound with its reason, and one knob (`patience`) scales everything.

Own slowness is nobody else's fault. Time that this process did not run does not count
(`AwakeClock`), and each sign of it makes the node wait longer for all others (`LocalHealth`,
Lifeguard: Dadgar et al. 2018, section 3.1).
"""

import math
from collections import deque
from statistics import median

# A MAD of normal noise is 0.67 sigma: 6 of them are 4 sigma.
DEVIATIONS = 6.0
SAMPLES = 32
# Fewer say nothing about the spread.
SAMPLES_MIN = 4
# Below the first, operating systems' scheduling is what one measures; above the second a line is
# of no use to anybody. The middle one holds until there are samples.
DEADLINE_MIN_S = 0.2
DEADLINE_FIRST_S = 1.0
DEADLINE_MAX_S = 3.0
# A living process may stand still for 2 s (garbage, a swapped-out page, a suspended disk); a silent
# member is given that, and the time that its refutation takes. Not above the last bound, however
# long the silences were that it came back from.
SILENCE_MIN_S = 3.5
SILENCE_MAX_S = 30.0
# A link that ended is made again within two tries of the dialler and five round trips: TCP, TLS
# (two), both handshake frames.
RECONNECT_S = 0.6
RECONNECT_ROUND_TRIPS = 5
# With no confirmation at all a suspicion lasts so many times as long as with all of them.
UNCONFIRMED_FACTOR = 2.0
# A tick is due every 0.1 s; a step that comes so late means that the process did not run.
GAP_MAX_S = 0.3
HEALTH_MAX = 8


class RoundTrips:
    """The last round trips to one peer, in seconds."""

    def __init__(self, elsewhere: "RoundTrips | None" = None) -> None:
        """elsewhere: those to all peers, which stand in until there are enough of this one."""
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._elsewhere = elsewhere

    def add(self, seconds: float) -> None:
        """Take in a measured round trip."""
        self._samples.append(max(0.0, seconds))
        if self._elsewhere is not None:
            self._elsewhere.add(seconds)

    @property
    def median_s(self) -> float | None:
        """The middle one; None before the first."""
        return median(self._samples) if self._samples else None

    @property
    def usual_s(self) -> float | None:
        """Median + K x MAD: nearly all round trips are shorter; None before there are enough."""
        if len(self._samples) < SAMPLES_MIN:
            return self._elsewhere.usual_s if self._elsewhere is not None else None
        middle = median(self._samples)
        return middle + DEVIATIONS * median(abs(each - middle) for each in self._samples)

    def deadline_s(self) -> float:
        """How long to wait for an answer, before patience and health."""
        usual = self.usual_s
        if usual is None:
            return DEADLINE_FIRST_S
        return min(DEADLINE_MAX_S, max(DEADLINE_MIN_S, usual))


class LocalHealth:
    """Lifeguard's multiplier: from 1, all is well, to 9, trust nothing that looks late."""

    def __init__(self) -> None:
        self._score = 0

    @property
    def factor(self) -> int:
        """What to multiply deadlines by."""
        return 1 + self._score

    def worse(self) -> None:
        """This node was late, or got no word from those that should have given one."""
        self._score = min(HEALTH_MAX, self._score + 1)

    def better(self) -> None:
        """An answer came in time."""
        self._score = max(0, self._score - 1)


class AwakeClock:
    """Seconds that this process was running: what passes while it is blocked does not count."""

    def __init__(self) -> None:
        self.awake_s = 0.0
        self.late_s = 0.0
        self._last: float | None = None

    def advance(self, now: float) -> float:
        """Go on to `now`, a monotonic time; returns by how much this step is late, mostly 0."""
        gap = 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now
        late = max(0.0, gap - GAP_MAX_S)
        self.awake_s += gap - late
        self.late_s += late
        return late


def suspicion_timeout_s(minimum_s: float, confirmations: int, expected: int) -> float:
    """How long a suspicion lasts: the more confirm it, the shorter (Lifeguard, section 3.2).

    maximum - (maximum - minimum) x log(C + 1) / log(K + 1), down to the minimum when all K that
    are expected have confirmed.
    """
    if expected <= 0 or confirmations >= expected:
        return minimum_s
    share = math.log(confirmations + 1) / math.log(expected + 1)
    return minimum_s * (UNCONFIRMED_FACTOR - (UNCONFIRMED_FACTOR - 1) * share)


def silence_allowed_s(deadline_s: float, longest_false_s: float) -> float:
    """How long a member may be silent: learned from the silences that it came back from."""
    learned = max(4 * deadline_s, 1.5 * longest_false_s)
    return min(SILENCE_MAX_S, max(SILENCE_MIN_S, learned))


def reconnect_allowed_s(usual_s: float | None) -> float:
    """How long the link to a living member may be down, given its usual round trip."""
    round_trip = DEADLINE_FIRST_S if usual_s is None else usual_s
    return RECONNECT_S + RECONNECT_ROUND_TRIPS * min(round_trip, DEADLINE_MAX_S)
