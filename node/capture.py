"""A record of everything that consensus said and heard, for an audit that trusts no replica.

Off unless [consensus] capture is set. Each start of the node writes a file of its own, named by
the boot, so that what an earlier process left behind is never touched again. A record is one
write to the file before the message goes on: it outlives the process that is killed right after
it, though not the machine (nothing is fsynced; the votes themselves are in the database).

    file    = record*
    record  = length u32 | crc32 of the body u32 | body
    body    = time_ms u64 | direction u8 | peer 32 bytes | data
    data    = a consensus message
            | sequence u64 | epoch u64 | digest 32 bytes | certificate      (DECIDED)

Numbers are big-endian, `peer` is zero where nobody in particular is meant. A process that was
killed in the middle of a write leaves half a record; readers end there.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from shoal.consensus.certificate import Certificate
from shoal.node.clock import now_ms
from shoal.node.config import Settings

FOLDER = "capture"
# A consensus message is at most one mebibyte; anything that claims more is not a record.
BODY_BYTES_MAX = 2 << 20

_FRAME = struct.Struct(">II")
_BODY = struct.Struct(">QB32s")
_DECIDED = struct.Struct(">QQ32s")
NOBODY = bytes(32)


class Direction(IntEnum):
    """What happened to the message."""

    RECEIVED = 1
    SENT = 2
    BROADCAST = 3
    DECIDED = 4


@dataclass(frozen=True, slots=True)
class Captured:
    """One record."""

    time_ms: int
    direction: Direction
    peer: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class CapturedDecision:
    """The data of a DECIDED record."""

    sequence: int
    epoch: int
    digest: bytes
    certificate: bytes


class Capture:
    """Appends records to one file."""

    def __init__(self, path: Path) -> None:
        """Begin a new file at `path`; its folder is made where it is missing."""
        path.parent.mkdir(exist_ok=True)
        self._file = path.open("xb", buffering=0)

    def write(self, direction: Direction, peer: bytes, data: bytes) -> None:
        """Append one record; it is in the hands of the system when this returns."""
        body = _BODY.pack(now_ms(), direction, peer) + data
        self._file.write(_FRAME.pack(len(body), zlib.crc32(body)) + body)

    def decided(self, certificate: Certificate) -> None:
        """Append what was decided and the certificate that decided it."""
        facts = _DECIDED.pack(certificate.sequence, certificate.epoch, certificate.digest)
        self.write(Direction.DECIDED, NOBODY, facts + certificate.to_bytes())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_capture(settings: Settings, boot: int) -> Capture | None:
    """Begin the record of a node's `boot`-th run, if the operator wants one."""
    if not settings.consensus.capture:
        return None
    return Capture(settings.node.directory / FOLDER / f"{boot:06}.bin")


def captures_of(directory: Path) -> list[Path]:
    """Return what the node of `directory` has left, oldest first."""
    return sorted((directory / FOLDER).glob("*.bin"))


def read_capture(path: Path) -> Iterator[Captured]:
    """Yield the records of one file, up to the first that is torn or damaged."""
    with path.open("rb") as file:
        while len(header := file.read(_FRAME.size)) == _FRAME.size:
            size, crc = _FRAME.unpack(header)
            if not _BODY.size <= size <= BODY_BYTES_MAX:
                return
            body = file.read(size)
            if len(body) != size or zlib.crc32(body) != crc:
                return
            time_ms, direction, peer = _BODY.unpack_from(body)
            yield Captured(time_ms, Direction(direction), peer, body[_BODY.size :])


def read_decision(data: bytes) -> CapturedDecision:
    """Return what a DECIDED record says; raises ValueError where it is too short."""
    if len(data) < _DECIDED.size:
        raise ValueError("the record of a decision is cut short")
    sequence, epoch, digest = _DECIDED.unpack_from(data)
    return CapturedDecision(sequence, epoch, digest, data[_DECIDED.size :])
