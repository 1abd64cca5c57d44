"""How many local steps a node's rounds have, so that fast and slow members publish together.

    H_i = H * v_i / median_j v_j        within H / 4 and 4 H, and H itself near the median

v_j is how fast member j gets through tokens: those of its deltas that come in during this node's
last rounds. Who is slow makes short rounds instead of late ones, and nobody waits for it; the
weights divide by the same speeds (weights.py), so the long rounds of a fast member do not count
for more per example.

H_i is a node's own choice: nothing has to be agreed, so speeds may be measured with its own clock.

Source: DyLU (Liu et al., 2024, arXiv:2401.09135), relative to the median instead of the fastest,
which one liar could pretend to be; reference/algorithms.md 1.6.
"""

from collections import deque
from statistics import median

# Own rounds that make up the time in which all speeds are measured, and how many are enough.
WINDOW = 8
WINDOW_MIN = 3
# Deltas of each member that are remembered: those of one four times as fast, and some.
REMEMBERED = 8 * WINDOW
# Within this factor of the median everybody makes H steps: machines of one kind stay equal.
NEAR = 1.5
FACTOR_MAX = 4


class Pace:
    """Speeds of the members of a mesh; times in seconds on one clock that never goes back."""

    def __init__(self, me: bytes) -> None:
        self._me = me
        self._heard: dict[bytes, deque[tuple[float, int]]] = {}

    def heard(self, member: bytes, tokens: int, now_s: float) -> None:
        """A delta of `member` that was made with `tokens` tokens has come in."""
        self._heard.setdefault(member, deque(maxlen=REMEMBERED)).append((now_s, tokens))

    def steps(self, agreed: int) -> int:
        """H_i for the mesh's H; H where too little is known to tell."""
        own = list(self._heard.get(self._me, ()))[-1 - WINDOW :]
        if len(own) <= WINDOW_MIN:
            return agreed
        # What comes in bunches, after a partition, is spread over the same time as all else. Who
        # said nothing in it is not there, and no measure.
        began = own[0][0]
        said = {
            member: sum(tokens for moment, tokens in heard if moment > began)
            for member, heard in self._heard.items()
            if heard[-1][0] > began
        }
        if len(said) < 2 or self._me not in said:
            return agreed
        factor = said[self._me] / max(1, median(said.values()))
        if 1 / NEAR <= factor <= NEAR:
            return agreed
        return max(1, round(agreed * min(max(factor, 1 / FACTOR_MAX), FACTOR_MAX)))
