"""How many validators must agree, and nothing else (consensus.md 1.1).

Two quorums have to meet in at least one honest validator. With n validators of which f may lie,
two sets of size q meet in at least 2q - n of them, so 2q - n >= f + 1, and the smallest such q
is ceil((n + f + 1) / 2). The better known 2f + 1 is the same number only for n = 3f + 1: at
n = 6 it is 3, and two quorums of 3 need not meet at all.
"""

MAX_VALIDATORS = 31


def faults(validators: int) -> int:
    """f: how many validators may behave arbitrarily (0 for fewer than four)."""
    return (validators - 1) // 3


def quorum(validators: int) -> int:
    """Q: any two sets of this size share at least f + 1 validators."""
    return (validators + faults(validators) + 2) // 2


def weak(validators: int) -> int:
    """f + 1: any set of this size has at least one honest validator in it."""
    return faults(validators) + 1
