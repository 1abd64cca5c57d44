"""The epochs of one schedule, each checked by somebody who read the page and not the program.

Whatever a node starts, its proof is worked through here from the bytes: the record names the one
before, and a quorum of the set before signed, at a stability point, a ledger with the record in it.
Layout of a link (big-endian): mesh id[32], number u64, parent[32], start u64, count u8, 32 bytes
per key, parameters (u32 length first), body digest[32], then the certificate.
"""

import hashlib
import struct
from bisect import bisect_left
from dataclasses import dataclass

from tests.simulation.verifier import STABLE, Verify, certificate_problem

_HEADER = struct.Struct(">32sQ32sQB")
_CERTIFICATE = struct.Struct(">BQQQ32sI")


@dataclass(frozen=True, slots=True)
class Page:
    """One epoch: its record's bytes, whose it is, and after which sequence it begins."""

    record: bytes
    start: int
    keys: tuple[bytes, ...]

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(b"SHOAL-EPOCH\x01" + self.record).digest()

    @property
    def faults(self) -> int:
        return (len(self.keys) - 1) // 3

    @property
    def quorum(self) -> int:
        return (len(self.keys) + self.faults + 2) // 2


class EpochBook:
    """All epochs that anybody has started so far. Nodes and liars are known by their keys."""

    def __init__(
        self, mesh_id: bytes, keys: tuple[bytes, ...], interval: int, verify: Verify
    ) -> None:
        self.mesh_id = mesh_id
        self.interval = interval
        self.verify = verify
        record = _HEADER.pack(mesh_id, 0, mesh_id, 0, len(keys)) + b"".join(keys) + bytes(4)
        self.pages = [Page(record, 0, keys)]

    @property
    def last(self) -> int:
        return len(self.pages) - 1

    @property
    def latest(self) -> Page:
        return self.pages[-1]

    def page(self, epoch: int) -> Page | None:
        return self.pages[epoch] if 0 <= epoch < len(self.pages) else None

    def key(self, epoch: int, signer: int) -> bytes | None:
        """Who this index of this epoch is."""
        page = self.page(epoch)
        return page.keys[signer] if page is not None and 0 <= signer < len(page.keys) else None

    def problem_at(self, epoch: int, sequence: int) -> str | None:
        """Why this epoch has no say at this sequence, as far as is known by now."""
        page, after = self.page(epoch), self.page(epoch + 1)
        if page is None:
            return "unknown epoch"
        inside = page.start < sequence and (after is None or sequence <= after.start)
        return None if inside else f"sequence {sequence} is not of epoch {epoch}"

    def epoch_at(self, sequence: int) -> int:
        """The epoch that a sequence belongs to, as far as is known by now."""
        return max(0, bisect_left([page.start for page in self.pages], sequence) - 1)

    def problem_of(self, data: bytes) -> str | None:
        """Why a certificate proves nothing; None when it does."""
        epoch = _CERTIFICATE.unpack_from(data)[1]
        page = self.page(epoch)
        if page is None:
            return "unknown epoch"
        return certificate_problem(
            data,
            mesh_id=self.mesh_id,
            epoch=epoch,
            keys=page.keys,
            interval=self.interval,
            verify=self.verify,
        )

    def add(self, number: int, link: bytes) -> str | None:
        """Why this is not the proof of epoch `number`; None when it is, and then it is kept."""
        mesh_id, named, parent, start, count = _HEADER.unpack_from(link)
        position = _HEADER.size
        keys = tuple(link[position + 32 * i : position + 32 * i + 32] for i in range(count))
        position += 32 * count
        position += 4 + int.from_bytes(link[position : position + 4], "big")
        page = Page(link[:position], start, keys)
        body_digest, certificate = link[position : position + 32], link[position + 32 :]
        if (mesh_id, named) != (self.mesh_id, number):
            return "another epoch or mesh"
        known = self.page(number)
        if known is not None:
            return None if known == page else f"two records for epoch {number}"
        before = self.page(number - 1)
        if before is None:
            return "an epoch is left out"
        if parent != before.digest:
            return "of another chain"
        if start <= before.start or start % self.interval:
            return "does not begin at a stability point"
        if not keys or list(keys) != sorted(set(keys)):
            return "not a set"
        if len(set(keys) ^ set(before.keys)) > max(1, before.faults):
            return "too many validators change at a time"
        kind, epoch, _, sequence, digest, _ = _CERTIFICATE.unpack_from(certificate)
        if (kind, epoch, sequence) != (STABLE, number - 1, start):
            return "proved by something else"
        if digest != hashlib.sha256(b"SHOAL-LEDGER\x02" + page.digest + body_digest).digest():
            return "proved for another record"
        problem = self.problem_of(certificate)
        if problem is None:
            self.pages.append(page)
        return problem
