"""Epochs: who may vote when, and the chain of proofs that leads there from the genesis.

An epoch is a stretch of the log with one validator set. Its record names the set; the quorum of
the epoch before certifies the record, because the record is part of the ledger whose digest that
quorum signed at the stability point where its own epoch ended (consensus.md 3.3). So whoever
trusts the genesis can check every later set offline, link by link, and no two sets can both
follow from one: that would take two certified ledgers at one sequence.

Record 0 is not certified by anybody: the genesis document is what the mesh id is the hash of.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from shoal.consensus.certificate import Certificate, read_certificate, verify_certificate
from shoal.consensus.errors import ConsensusError
from shoal.consensus.fields import DIGEST_BYTES, ID_BYTES, Reader, blob, u8, u64
from shoal.consensus.quorum import MAX_VALIDATORS
from shoal.consensus.validators import Validators, Verify
from shoal.consensus.votes import VoteKind

MAX_EPOCH_PARAMETERS_BYTES = 4096
MAX_EPOCHS = 65_536
# A link of 31 validators and full parameters is about 7 KiB.
MAX_LINK_BYTES = 8192
# Its length, and a record and a certificate of one validator.
MIN_LINK_BYTES = 4 + 117 + 32 + 61 + 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch: its validators' keys (ascending) and the sequence that the one before ended at.

    `parameters` are opaque here; `b""` means those of the genesis.
    """

    mesh_id: bytes
    number: int
    parent: bytes
    start: int
    keys: tuple[bytes, ...]
    parameters: bytes = b""

    def to_bytes(self) -> bytes:
        return b"".join(
            (
                self.mesh_id,
                u64(self.number),
                self.parent,
                u64(self.start),
                u8(len(self.keys)),
                *self.keys,
                blob(self.parameters),
            )
        )

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(b"SHOAL-EPOCH\x01" + self.to_bytes()).digest()

    def validators(self, interval: int) -> Validators:
        """The voting set; `interval` is the mesh's distance between stability points."""
        return Validators(self.mesh_id, self.number, self.keys, interval)


def first_epoch(mesh_id: bytes, keys: Iterable[bytes]) -> EpochRecord:
    """Epoch 0, which follows from the genesis alone."""
    ordered = tuple(sorted(keys))
    return EpochRecord(mesh_id=mesh_id, number=0, parent=mesh_id, start=0, keys=ordered)


def read_epoch(reader: Reader) -> EpochRecord:
    """Take one record off the reader; raises ConsensusError for a set that could not vote."""
    mesh_id, number, parent = reader.take(ID_BYTES), reader.u64(), reader.take(DIGEST_BYTES)
    start, count = reader.u64(), reader.u8()
    if not 1 <= count <= MAX_VALIDATORS:
        raise ConsensusError("bad-epoch", f"{count} validators")
    keys = tuple(reader.take(ID_BYTES) for _ in range(count))
    if list(keys) != sorted(set(keys)):
        raise ConsensusError("bad-epoch", "validators are not in ascending order")
    return EpochRecord(
        mesh_id=mesh_id,
        number=number,
        parent=parent,
        start=start,
        keys=keys,
        parameters=reader.blob(MAX_EPOCH_PARAMETERS_BYTES),
    )


def ledger_digest_of(epoch_digest: bytes, body_digest: bytes) -> bytes:
    """What STABLE votes sign: the epoch in force and the rest of the ledger, bound together."""
    return hashlib.sha256(b"SHOAL-LEDGER\x02" + epoch_digest + body_digest).digest()


@dataclass(frozen=True, slots=True)
class EpochLink:
    """A record with the stability certificate of the epoch before over a ledger that holds it."""

    record: EpochRecord
    body_digest: bytes
    certificate: Certificate

    def to_bytes(self) -> bytes:
        return self.record.to_bytes() + self.body_digest + self.certificate.to_bytes()


def read_link(reader: Reader) -> EpochLink:
    """Take one link off the reader; raises ConsensusError."""
    return EpochLink(read_epoch(reader), reader.take(DIGEST_BYTES), read_certificate(reader))


def parse_link(data: bytes) -> EpochLink:
    """The link that these bytes are; raises ConsensusError."""
    reader = Reader(data)
    link = read_link(reader)
    reader.end()
    return link


class EpochChain:
    """The epochs from the genesis on, each checked against the one before when it was added."""

    def __init__(self, genesis: EpochRecord, interval: int) -> None:
        self._interval = interval
        self._records = [genesis]
        self._links: list[EpochLink] = []
        self._sets = [genesis.validators(interval)]

    @property
    def last(self) -> int:
        """The highest epoch that is proved here."""
        return len(self._records) - 1

    def record(self, number: int) -> EpochRecord:
        """The record of an epoch that is proved here; raises ConsensusError("unknown-epoch")."""
        if not 0 <= number <= self.last:
            raise ConsensusError("unknown-epoch", str(number))
        return self._records[number]

    def validators(self, number: int) -> Validators:
        """The voting set of an epoch that is proved here; raises ConsensusError."""
        self.record(number)
        return self._sets[number]

    def link(self, number: int) -> EpochLink:
        """The proof of epoch `number`, from 1 to `last`."""
        return self._links[number - 1]

    def require_within(self, number: int, sequence: int) -> None:
        """Raise ConsensusError unless epoch `number` may certify something at this sequence.

        Where a later epoch is proved, its start is where the word of the earlier set ends: keys
        of validators that left long ago may have been stolen since.
        """
        ended = number < self.last and sequence > self._records[number + 1].start
        if sequence <= self.record(number).start or ended:
            raise ConsensusError("outside-epoch", f"{sequence} in epoch {number}")

    def recent(self, number: int, count: int) -> tuple[Validators, ...]:
        """The sets of up to `count` epochs that end with `number`."""
        return tuple(self._sets[max(0, number - count + 1) : number + 1])

    def check(self, link: EpochLink, verify: Verify) -> None:
        """Raise ConsensusError unless this is the proof of the epoch after `last`."""
        record, certificate = link.record, link.certificate
        before = self._records[-1]
        if record.number != before.number + 1 or record.number > MAX_EPOCHS:
            raise ConsensusError("epoch-out-of-order", str(record.number))
        if record.mesh_id != before.mesh_id or record.parent != before.digest:
            raise ConsensusError("epoch-of-another-chain", str(record.number))
        if record.start <= before.start or record.start % self._interval:
            raise ConsensusError("epoch-start", str(record.start))
        claim = (
            VoteKind.STABLE,
            before.number,
            record.start,
            ledger_digest_of(record.digest, link.body_digest),
        )
        proof = (
            certificate.kind,
            certificate.epoch,
            certificate.sequence,
            certificate.digest,
        )
        if proof != claim:
            raise ConsensusError("epoch-proof-of-something-else", str(record.number))
        verify_certificate(certificate, self._sets[-1], verify)

    def append(self, link: EpochLink) -> None:
        """Add a link that `check` has accepted, or that was durable here already."""
        assert link.record.number == self.last + 1, "epochs are added in order"
        self._records.append(link.record)
        self._links.append(link)
        self._sets.append(link.record.validators(self._interval))

    def __iter__(self) -> Iterator[EpochLink]:
        return iter(self._links)

    def links(self, number: int) -> tuple[bytes, ...]:
        """The links of epochs 1 to `number`: what a stranger needs besides the genesis."""
        return tuple(link.to_bytes() for link in self._links[:number])


def split_links(data: bytes) -> tuple[bytes, ...]:
    """The links in a list of them: their number and each length in four bytes (epochs.bin)."""
    reader = Reader(data)
    count = reader.u32()
    if count > min(MAX_EPOCHS, len(data) // MIN_LINK_BYTES):
        raise ConsensusError("too-many", f"{count} epochs")
    links = tuple(reader.blob(MAX_LINK_BYTES) for _ in range(count))
    reader.end()
    return links


def join_links(links: Sequence[bytes]) -> bytes:
    """A list of links as it travels; `split_links` is the inverse."""
    return len(links).to_bytes(4, "big") + b"".join(blob(link) for link in links)


def build_chain(
    links: Iterable[bytes], genesis: EpochRecord, interval: int, verify: Verify
) -> EpochChain:
    """Rebuild and check a chain from what `EpochChain.links` gave; raises ConsensusError."""
    chain = EpochChain(genesis, interval)
    for data in links:
        link = parse_link(data)
        chain.check(link, verify)
        chain.append(link)
    return chain
