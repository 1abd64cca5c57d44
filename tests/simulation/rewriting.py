"""A liar who rewrites who votes: false epochs, false evidence, promises that nobody made.

Its chain of epochs leads to a set of liars only. Its evidence against honest validators is made of
statements that they did not make. Its READY quorums consist of its own signatures.
"""

import hashlib
from dataclasses import replace

from shoal.consensus.certificate import Certificate
from shoal.consensus.epochs import EpochLink, EpochRecord, ledger_digest_of
from shoal.consensus.evidence import Evict, Proof
from shoal.consensus.messages import Epochs, Request, encode
from shoal.consensus.records import operation_bytes
from shoal.consensus.votes import Vote, VoteKind
from tests.simulation.adversary import Liar, Sent
from tests.simulation.book import Page
from tests.simulation.decoded import decode
from tests.simulation.wire import STATUS

SIGNATURE_BYTES = 64


class Rewriter(Liar):
    """Says with every tenth message, and every other STATUS, something about epochs."""

    def outgoing(self, target: int, data: bytes) -> list[Sent]:
        message = decode(data)
        if isinstance(message, Epochs) and message.links and self.rng.random() < 0.5:
            self.counts["rewrite"] += 1
            return [(0, encode(self._altered(message)))]
        if self.rng.random() > (0.5 if data[0] == STATUS else 0.1):
            return [(0, data)]
        self.counts["rewrite"] += 1
        match self.rng.randrange(4):
            case 0:
                lie = encode(Epochs((self._link(),)))
            case 1:
                lie = self._accusation()
            case 2:
                lie = encode(Epochs((), self._ready()))
            case _:
                lie = self._beyond(data)
        return [(0, data), (0, lie)]

    def _altered(self, message: Epochs) -> Epochs:
        """True links, of which one says something else."""
        links = list(message.links)
        where = self.rng.randrange(len(links))
        record = links[where].record
        if self.rng.random() < 0.5:
            record = replace(record, start=record.start + self.coalition.interval)
        else:
            record = replace(record, keys=tuple(sorted(self.coalition.signers)))
        links[where] = replace(links[where], record=record)
        return Epochs(tuple(links), message.ready)

    def _link(self) -> EpochLink:
        """The next epoch as we would like it, certified as far as our signatures go.

        Half of the time by the set that it names itself, in place of the one before.
        """
        book, ours = self.coalition.book, tuple(sorted(self.coalition.signers))
        before = book.pages[max(0, book.last - self.rng.choice((0, 0, 1)))]
        number = book.pages.index(before) + 1
        start = before.start + book.interval * self.rng.randint(1, 3)
        record = EpochRecord(
            mesh_id=book.mesh_id, number=number, parent=before.digest, start=start, keys=ours
        )
        body = hashlib.sha256(b"no ledger").digest()
        digest = ledger_digest_of(record.digest, body)
        own_word = self.rng.random() < 0.5
        page = Page(record.to_bytes(), start, ours) if own_word else before
        return EpochLink(
            record, body, self._quorum(VoteKind.STABLE, number - 1, start, digest, page)
        )

    def _ready(self) -> Certificate:
        book = self.coalition.book
        digest = hashlib.sha256(b"no ledger").digest()
        return self._quorum(VoteKind.READY, book.last, book.latest.start, digest, book.latest)

    def _quorum(
        self, kind: VoteKind, epoch: int, sequence: int, digest: bytes, page: Page
    ) -> Certificate:
        """A quorum's worth of signatures, of which only the liars' own are real."""
        ours = [index for index, key in enumerate(page.keys) if key in self.coalition.signers]
        others = [index for index in range(len(page.keys)) if index not in ours]
        signers = sorted([*ours, *others][: page.quorum])
        signatures = []
        for signer in signers:
            vote = Vote(kind, epoch, 0, sequence, digest, signer, b"")
            sign = self.coalition.signers.get(page.keys[signer])
            signed = sign(vote.signed_bytes(self.coalition.mesh_id)) if sign else None
            signatures.append(signed or bytes(SIGNATURE_BYTES))
        return Certificate(kind, epoch, 0, sequence, digest, tuple(signers), tuple(signatures))

    def _accusation(self) -> bytes:
        """Two votes of an honest validator, or two of our own in its name."""
        book = self.coalition.book
        epoch = book.last
        honest = [i for i, key in enumerate(book.latest.keys) if key not in self.coalition.signers]
        if not honest:
            return encode(Request(b""))
        accused = self.rng.choice(honest)
        signer = self.rng.choice([accused, *self.coalition.ours(epoch)])
        statements = []
        for number in range(2):
            digest = hashlib.sha256(bytes([number])).digest()
            vote = Vote(VoteKind.COMMIT, epoch, 0, 1, digest, signer, bytes(SIGNATURE_BYTES))
            statements.append(self.coalition.signed(vote).to_bytes())
        first, second = sorted(statements)
        evict = Evict(book.latest.keys[accused], Proof.VOTES, first, second)
        return encode(Request(operation_bytes(evict)))

    def _beyond(self, data: bytes) -> bytes:
        """Our vote moved into the next epoch, or into the one before."""
        message = decode(data)
        if not isinstance(message, Vote):
            return data
        other = replace(message, epoch=max(0, message.epoch + self.rng.choice((-1, 1))))
        return encode(self.coalition.signed(other))
