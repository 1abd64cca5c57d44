"""One dial: from the bytes that a member may send to how much it says and how often.

Every delta reaches every member, so a mesh of n sends it n - 1 times however it is routed, and a
member's share of that is n - 1 frames a round. With b(k) bytes per parameter in a frame that keeps
k values of each 4096,

    kept_per_chunk(budget, n) = max { k : b(k) (n - 1) <= budget },    the smallest k where none is

A budget that is small for its mesh would make deltas of next to nothing. Rarer ones that say more
are worth more (docs/adr/0030), so rounds may be lengthened, and the budget with them, by

    stretch(budget, n) = the least of 1, 2, 4, ... 128 for whose budget a k with k n >= 48 is paid

All members compute both from the committed member list: a table and products, which IEEE 754
fixes to the bit. Source: reference/algorithms.md 1.4 (density and H chosen and frozen per epoch).
"""

# (k, b(k)): steps of sqrt 2, measured on deltas of normal, product-normal and heavy-tailed values
# (the largest of the three, rounded up; tests/gossip/test_density.py measures again). Between 1448
# and 4096, where no positions need to be said, there is nothing cheaper than 4096.
LEVELS: tuple[tuple[int, float], ...] = (
    (1, 0.00071),
    (2, 0.00119),
    (3, 0.00157),
    (4, 0.0019),
    (6, 0.00247),
    (8, 0.003),
    (11, 0.00378),
    (16, 0.00519),
    (23, 0.00703),
    (32, 0.0093),
    (45, 0.0124),
    (64, 0.0166),
    (91, 0.0222),
    (128, 0.0294),
    (181, 0.0387),
    (256, 0.0506),
    (362, 0.0766),
    (512, 0.0999),
    (724, 0.1292),
    (1024, 0.1669),
    (1448, 0.2185),
    (4096, 0.2504),
)
# Values of each 4096 that all members together say in a round, at least.
SAID_MIN = 48
STRETCHES = (1, 2, 4, 8, 16, 32, 64, 128)


def copies(members: int) -> int:
    """How many frames a member sends a round; a mesh of one keeps as much as a mesh of two."""
    return max(1, members - 1)


def kept_per_chunk(budget: float, members: int) -> int:
    """Values kept of each 4096. budget: bytes per parameter and round, above 0."""
    return max(_paid_for(budget, members), LEVELS[0][0])


def stretch(budget: float, members: int) -> int:
    """How many times longer rounds are than usual, so that the budget pays for deltas of worth.

    budget: bytes per parameter and usual round, above 0.
    """
    enough = (s for s in STRETCHES if _paid_for(s * budget, members) * members >= SAID_MIN)
    return next(enough, STRETCHES[-1])


def _paid_for(budget: float, members: int) -> int:
    """Values of each 4096 for which a round's budget is enough; 0 where it is for none."""
    fitting = [kept for kept, cost in LEVELS if cost * copies(members) <= budget]
    return max(fitting, default=0)


def budget_for(kept: int, members: int) -> float:
    """The least budget that keeps at least `kept` of 4096 in a mesh of so many members."""
    return next(cost for level, cost in LEVELS if level >= kept) * copies(members)
