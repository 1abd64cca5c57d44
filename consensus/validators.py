"""The voting set of one epoch, and the cached verification of its signatures.

A validator is known by its Ed25519 public key; its index, the position of the key in the sorted
list, is what votes and bitmaps carry. The mesh id and the epoch travel with the set, because a
signature means nothing without them: certificates are always checked against the set of the
epoch that they name (sawtooth-pbft #86 used the wrong one).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.consensus.fields import ID_BYTES
from shoal.consensus.quorum import MAX_VALIDATORS, faults, quorum, weak

if TYPE_CHECKING:
    from shoal.consensus.evidence import ReadStatement

Sign = Callable[[bytes], bytes]
Verify = Callable[[bytes, bytes, bytes], bool]

# Retransmission makes replicas see most signatures more than once, and a NEW-VIEW repeats
# certificates that each VIEW-CHANGE already carried, so valid signatures are remembered.
CACHED_SIGNATURES = 8192
# K: a stability point, and another primary, every so many sequences.
STABILITY_INTERVAL = 8
MAX_INTERVAL = 8


@dataclass(frozen=True, slots=True)
class Validators:
    """mesh_id[32], the epoch, and the public keys in ascending order (1 to 31 of them).

    `interval` is K, the distance between stability points, which is the same in all epochs.
    """

    mesh_id: bytes
    epoch: int
    keys: tuple[bytes, ...]
    interval: int = STABILITY_INTERVAL

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= MAX_VALIDATORS:
            raise ValueError(f"{len(self.keys)} validators; 1 to {MAX_VALIDATORS} can vote")
        if list(self.keys) != sorted(set(self.keys)):
            raise ValueError("validator keys must be sorted and distinct")
        if any(len(key) != ID_BYTES for key in (self.mesh_id, *self.keys)):
            raise ValueError("mesh id and validator keys are 32 bytes each")
        if not 1 <= self.interval <= MAX_INTERVAL:
            raise ValueError(f"the stability interval is 1 to {MAX_INTERVAL}")

    @property
    def n(self) -> int:
        return len(self.keys)

    @property
    def faults(self) -> int:
        return faults(len(self.keys))

    @property
    def quorum(self) -> int:
        return quorum(len(self.keys))

    @property
    def weak(self) -> int:
        return weak(len(self.keys))

    def leader(self, view: int) -> int:
        """Index of the validator that starts this view: p = v mod n (PBFT 4.1)."""
        return view % len(self.keys)

    def primary(self, view: int, sequence: int) -> int:
        """Index of the validator that proposes what is new at this sequence of the view.

        The turn passes on after each stability point, without a view change, so that a primary
        which is only just fast enough, or never orders somebody's operations, does not stay
        (the planned rotation that Aardvark, NSDI 2009, found necessary).
        """
        return (view + (sequence - 1) // self.interval) % len(self.keys)

    def proposer(self, height: int, attempt: int) -> int:
        """Index of the validator that builds the candidate for this height and attempt."""
        return (height + attempt) % len(self.keys)

    def index(self, key: bytes) -> int | None:
        return self.keys.index(key) if key in self.keys else None


class Verifier:
    """Checks signatures of validators by index, and remembers the valid ones, within a bound."""

    def __init__(
        self,
        validators: Validators,
        verify: Verify,
        *,
        recent: tuple[Validators, ...] = (),
        read_statement: "ReadStatement | None" = None,
    ) -> None:
        """`recent` are the sets that evidence may still be about, the current one among them."""
        self.validators = validators
        self.verify = verify
        self.recent = recent or (validators,)
        self.read_statement = read_statement
        self._valid: dict[tuple[int, bytes], bytes] = {}

    def check(self, signer: int, message: bytes, signature: bytes) -> bool:
        """True when validator `signer` signed exactly `message`; False for an unknown index."""
        if not 0 <= signer < self.validators.n:
            return False
        if self._valid.get((signer, signature)) == message:
            return True
        if not self.verify(self.validators.keys[signer], message, signature):
            return False
        if len(self._valid) >= CACHED_SIGNATURES:
            del self._valid[next(iter(self._valid))]
        self._valid[signer, signature] = message
        return True
