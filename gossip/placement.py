"""Who keeps what: rendezvous hashing over the agreed members.

Every member gets a score for every key, H(domain | member | key); the r highest keep it. There is
no ring, no table and nothing to agree on but the member list: whoever has that computes the same
holders. A member that comes takes over just the keys in which it now scores among the first r, one
that goes leaves just its own keys to those who came next in rank
(docs/adr/0010-redundancy.md, reference/consensus.md 3.7).
"""

import hashlib
from collections.abc import Collection

DOMAIN = b"SHOAL-PLACEMENT\x01"
COPIES_MIN = 3
MEMBER_BYTES = 32


def copies(f: int) -> int:
    """r: how many members keep each piece. f of them may lie or be gone, and one is left."""
    assert f >= 0, "f is a number of members"
    return max(COPIES_MIN, f + 1)


def ranking(key: bytes, members: Collection[bytes]) -> list[bytes]:
    """All of `members` (32 bytes each), the highest score for `key` first; repetitions count once.

    Does not depend on the order of `members`.
    """
    return sorted(set(members), key=lambda member: _score(member, key), reverse=True)


def holders(key: bytes, members: Collection[bytes], r: int) -> tuple[bytes, ...]:
    """The r members that keep `key`, highest score first; all of them where there are fewer."""
    assert r >= 1, "somebody keeps it"
    return tuple(ranking(key, members)[:r])


def _score(member: bytes, key: bytes) -> bytes:
    assert len(member) == MEMBER_BYTES, "fixed length, so that no two (member, key) look alike"
    # The member itself behind its hash settles a tie, should there ever be one.
    return hashlib.sha256(DOMAIN + member + key).digest() + member
