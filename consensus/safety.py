"""SafetyRules: the only holder of the signing key, and the memory of every vote made with it.

A validator that signs two different digests for one (kind, epoch, view, sequence) is Byzantine,
whatever it meant. So all signatures come from here; each vote leaves a row in the same
transaction as the step that sends it; and asking again for a vote gives the old signature or an
assertion, never a second opinion. Rows come back at restart before anything else happens.
"""

from collections.abc import Callable, Mapping

from shoal.consensus.fields import DIGEST_BYTES
from shoal.consensus.messages import sealed_bytes
from shoal.consensus.validators import Sign, Validators
from shoal.consensus.votes import Vote, VoteKind

PersistRow = Callable[[str, bytes | None], None]


class SafetyRules:
    """Signs for validator `me`; `prefix` is where its vote rows live."""

    def __init__(
        self, *, sign: Sign, validators: Validators, me: int, prefix: str, persist: PersistRow
    ) -> None:
        self._sign = sign
        self._validators = validators
        self._prefix = prefix
        self._persist = persist
        self._votes: dict[tuple[VoteKind, int, int], Vote] = {}
        self.me = me

    def vote(self, kind: VoteKind, *, view: int, sequence: int, digest: bytes) -> Vote:
        """Sign, once: the same question gets the same vote, another digest is our bug."""
        known = self._votes.get((kind, view, sequence))
        if known is not None:
            assert known.digest == digest, f"second {kind.name} in view {view} at {sequence}"
            return known
        unsigned = Vote(kind, self._validators.epoch, view, sequence, digest, self.me, b"")
        signature = self._sign(unsigned.signed_bytes(self._validators.mesh_id))
        vote = Vote(kind, self._validators.epoch, view, sequence, digest, self.me, signature)
        self._votes[kind, view, sequence] = vote
        self._persist(self._key(kind, view, sequence), digest + signature)
        return vote

    def recall(self, kind: VoteKind, *, view: int, sequence: int) -> Vote | None:
        """The vote that was made, if one was."""
        return self._votes.get((kind, view, sequence))

    def sequences(self, kind: VoteKind, *, view: int) -> list[int]:
        """Where votes of this kind were made in this view, ascending."""
        return sorted(s for (k, v, s) in self._votes if k is kind and v == view)

    def seal(self, domain: bytes, body: bytes) -> bytes:
        """Sign a VIEW-CHANGE, NEW-VIEW or STATUS; what may be in one is for the caller to know."""
        return self._sign(sealed_bytes(domain, self._validators.mesh_id, body))

    def forget(self, up_to: int) -> None:
        """Drop votes at sequences that can never be voted on again (at or below the watermark)."""
        for kind, view, sequence in [key for key in self._votes if key[2] <= up_to]:
            if kind is not VoteKind.READY:
                del self._votes[kind, view, sequence]
                self._persist(self._key(kind, view, sequence), None)

    def retire(self) -> None:
        """The epoch is over: its votes can never be asked for again, nor others made in it."""
        for kind, view, sequence in list(self._votes):
            self._persist(self._key(kind, view, sequence), None)
        self._votes.clear()

    def restore(self, rows: Mapping[str, bytes]) -> None:
        """Take up the votes of this epoch; those of an earlier one bind nobody any more.

        Whoever is told of an earlier epoch than it has voted in would vote there anew when it
        comes back to it, so that is an error of the caller's, and not a small one.
        """
        epoch, start = self._validators.epoch, f"{self._prefix}vote/"
        for key, value in rows.items():
            if not key.startswith(start):
                continue
            number, kind, view, sequence = (int(part) for part in key[len(start) :].split("/"))
            assert number <= epoch, f"there are votes of epoch {number}, and this is {epoch}"
            if number < epoch:
                self._persist(key, None)
                continue
            digest, signature = value[:DIGEST_BYTES], value[DIGEST_BYTES:]
            vote = Vote(VoteKind(kind), epoch, view, sequence, digest, self.me, signature)
            self._votes[vote.kind, view, sequence] = vote

    def _key(self, kind: VoteKind, view: int, sequence: int) -> str:
        return f"{self._prefix}vote/{self._validators.epoch}/{int(kind)}/{view}/{sequence}"
