"""The mesh parameters of an epoch, read a second time for `shoal verify`.

Written from docs/verify.md alone, like verify_formats.py: a genesis names the first ones, and an
epoch's record those that hold from it on. Bytes that put nothing in force change nothing.
"""

from collections.abc import Mapping
from struct import Struct
from typing import Any

# In the order of the record: name, value where a genesis does not say, least, most.
_FIELDS: tuple[tuple[str, float, float, float], ...] = (
    ("local_steps", 0, 0, 100_000),
    ("rounds_per_checkpoint", 8, 1, 1024),
    ("budget", 0.06, 0.0001, 1000.0),
    ("beta", 0.95, 0.001, 1.0),
    ("start_share", 0.3, 0.0, 1.0),
    ("clip_factor", 2.0, 0.1, 1e6),
    ("learning_rate", 1e-3, 1e-9, 10.0),
    ("warmup_tokens", 100_000, 0, 2**62),
    ("schedule_tokens", 100_000_000, 1, 2**62),
    ("normalise_steps", False, False, True),
    ("trust", True, False, True),
    ("evict_harmful", False, False, True),
)
_SWITCHES = ("normalise_steps", "trust", "evict_harmful")
_FORM = Struct(">BIHdddddQQBBB")
_VERSION = 3
# Values kept of each 4096, and the bytes per parameter that a delta of so many takes.
_LEVELS = (
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

Parameters = Mapping[str, float]


def first_parameters(content: Mapping[str, Any]) -> Parameters:
    """Those of the genesis; raises ValueError where one is no number in its range."""
    found: dict[str, float] = {}
    for name, usual, least, most in _FIELDS:
        value = content.get(name, usual)
        whole = isinstance(usual, int)
        switch = isinstance(value, bool)
        if switch != (name in _SWITCHES) or not isinstance(value, int if whole else (int, float)):
            raise ValueError(f"{name} is not of its kind")
        if not least <= value <= most:
            raise ValueError(f"{name} is out of range")
        found[name] = value
    return found


def parameters_after(before: Parameters, record: bytes, genesis: Parameters) -> Parameters:
    """Those in force in the epoch whose record carries these bytes, the epoch before's given."""
    if not record:
        return genesis
    if len(record) != _FORM.size or record[0] != _VERSION:
        return before
    values = _FORM.unpack(record)[1:]
    for value, (_, _, least, most) in zip(values, _FIELDS, strict=True):
        # Not a number is between nothing and nothing.
        if not least <= value <= most:
            return before
    return {
        name: bool(value) if name in _SWITCHES else value
        for value, (name, *_) in zip(values, _FIELDS, strict=True)
    }


def density(in_force: Parameters, members: int) -> int:
    """How many values of each 4096 the budget in force pays for in a mesh of so many members."""
    rounds = [1.0] if in_force["local_steps"] else [2.0**doublings for doublings in range(8)]
    kept = 0
    for longer in rounds:
        paid = in_force["budget"] * longer
        kept = max((k for k, b in _LEVELS if b * max(1, members - 1) <= paid), default=0)
        if kept * members >= 48:
            break
    return max(1, kept)
