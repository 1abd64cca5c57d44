"""What `shoal verify` reads: the bytes of a checkpoint directory, parsed a second time.

This is deliberately not the code that the node runs (consensus/, gossip/): a fault there that
made a forged checkpoint look right must not make it look right here as well. It imports nothing
of Shoal but the errors, and it is written from the formats alone. All integers are big-endian.

Every length is compared with what is there before anything is read or allocated.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO

from shoal.node.errors import DamagedError
from shoal.node.verify_adapters import Adapters, parse_adapters
from shoal.node.verify_parameters import Parameters, first_parameters

COMMIT, STABLE, ATTEST = 3, 4, 5
VALIDATORS_MAX = 31
MIB = 1 << 20
GENESIS_BYTES_MAX = MIB
GENESIS_PARTS_MAX = 16_384
OPERATION_BYTES_MAX = 384 * 1024
CERTIFICATE_BYTES_MAX = 4096
EPOCHS_BYTES_MAX = 64 * MIB
LINK_BYTES_MAX = 16 * 1024
EPOCH_PARAMETERS_MAX = 4096
RECORD_PARAMETERS_MAX = 64 * 1024
CUT_MAX = 4096
TENSORS_MAX = 2048
PARAMETERS_MAX = 500_000_000
# What a person may read but nobody should believe.
UNTRUSTED = "checkpoint.json"
# No file of the tokenizer has one of these names.
OURS = (
    "genesis.json",
    "epochs.bin",
    "operation.bin",
    "certificate.bin",
    "settled.bin",
    "manifest.bin",
    "chunks",
    "deltas.bin",
    "model.safetensors",
    "adapter_model.safetensors",
    "adapter_config.json",
    "config.json",
    "anchor.bin",
    UNTRUSTED,
)
_CERTIFICATE = Struct(">BQQQ32sI")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


class Refused(DamagedError):
    """The directory is not what it claims to be; `reason` is the name of the check that failed."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


def hash_of(domain: bytes, data: bytes) -> bytes:
    """SHA-256 of `data` under a domain tag."""
    return hashlib.sha256(domain + data).digest()


@contextmanager
def opened(directory: Path, name: str, bytes_max: int) -> Iterator[tuple[BinaryIO, int]]:
    """Open a plain file of the directory and give it with its size; raises Refused."""
    path = directory / name
    if not path.is_file():
        raise Refused("missing-file", f"{name!r} is not there")
    with path.open("rb") as file:
        size = path.stat().st_size
        if size > bytes_max:
            raise Refused("too-large", f"{name!r} has {size} bytes, at most {bytes_max}")
        yield file, size


def read_file(directory: Path, name: str, bytes_max: int) -> bytes:
    """The bytes of one file; raises Refused."""
    with opened(directory, name, bytes_max) as (file, size):
        return file.read(size)


class Fields:
    """Takes fields off the front of bytes; raises Refused(reason) where they end too early."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise self.wrong("it ends too early")
        self._at += size
        return piece

    def number(self, size: int) -> int:
        """The next `size` bytes as an unsigned integer."""
        return int.from_bytes(self.take(size), "big")

    def blob(self, bytes_max: int) -> bytes:
        """Bytes after their length in four bytes."""
        size = self.number(4)
        if size > bytes_max:
            raise self.wrong(f"a field of {size} bytes")
        return self.take(size)

    def since(self, start: int) -> bytes:
        """What was taken from position `start` on."""
        return self._data[start : self._at]

    def end(self) -> None:
        """Raise Refused where something is left."""
        if self._at != len(self._data):
            raise self.wrong(f"{len(self._data) - self._at} bytes too many")

    def wrong(self, why: str) -> Refused:
        """What to raise when these bytes are malformed."""
        return Refused(f"malformed-{self._what}", f"the {self._what} is malformed: {why}")


@dataclass(frozen=True, slots=True)
class Certificate:
    """Signatures over one vote. signers: ascending indices into the epoch's validators."""

    kind: int
    epoch: int
    view: int
    sequence: int
    digest: bytes
    signers: tuple[int, ...]
    signatures: tuple[bytes, ...]


def parse_certificate(fields: Fields) -> Certificate:
    """Take a certificate off the front; raises Refused."""
    kind, epoch, view, sequence, digest, bitmap = _CERTIFICATE.unpack(
        fields.take(_CERTIFICATE.size)
    )
    if bitmap >> VALIDATORS_MAX:
        raise fields.wrong("a signer beyond the 31st validator")
    signers = tuple(index for index in range(VALIDATORS_MAX) if bitmap >> index & 1)
    signatures = tuple(fields.take(64) for _ in signers)
    return Certificate(kind, epoch, view, sequence, digest, signers, signatures)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch: its number, its record's digest, its first sequence less one, who votes in it,
    and what its record says of the mesh's parameters."""

    number: int
    digest: bytes
    start: int
    validators: tuple[bytes, ...]
    parameters: bytes = b""


@dataclass(frozen=True, slots=True)
class Link:
    """How an epoch follows from the one before it: its record and the old epoch's certificate."""

    mesh_id: bytes
    parent: bytes
    epoch: Epoch
    ledger_body_digest: bytes
    certificate: Certificate


def epoch_digest(record: bytes) -> bytes:
    """What names an epoch record."""
    return hash_of(b"SHOAL-EPOCH\x01", record)


def genesis_epoch(mesh_id: bytes, validators: tuple[bytes, ...]) -> Epoch:
    """Epoch 0, which the genesis document states."""
    record = b"".join(
        (mesh_id, bytes(8), mesh_id, bytes(8), bytes([len(validators)]), *validators, bytes(4))
    )
    return Epoch(0, epoch_digest(record), 0, validators)


def parse_link(data: bytes) -> Link:
    """An item of epochs.bin; raises Refused."""
    fields = Fields(data, "epoch-link")
    mesh_id, number, parent, start = (
        fields.take(32),
        fields.number(8),
        fields.take(32),
        fields.number(8),
    )
    count = fields.number(1)
    if not 1 <= count <= VALIDATORS_MAX:
        raise fields.wrong(f"{count} validators")
    validators = tuple(fields.take(32) for _ in range(count))
    if list(validators) != sorted(set(validators)):
        raise fields.wrong("its validators are not distinct and in order")
    parameters = fields.blob(EPOCH_PARAMETERS_MAX)
    epoch = Epoch(number, epoch_digest(fields.since(0)), start, validators, parameters)
    link = Link(mesh_id, parent, epoch, fields.take(32), parse_certificate(fields))
    fields.end()
    return link


def parse_links(directory: Path) -> list[Link]:
    """All of epochs.bin; raises Refused."""
    fields = Fields(read_file(directory, "epochs.bin", EPOCHS_BYTES_MAX), "epoch-chain")
    links = [parse_link(fields.blob(LINK_BYTES_MAX)) for _ in range(fields.number(4))]
    fields.end()
    return links


@dataclass(frozen=True, slots=True)
class Record:
    """A checkpoint record; cut: (member, sequence, delta id) in order."""

    digest: bytes
    mesh_id: bytes
    height: int
    parent: bytes
    round: int
    proposer: bytes
    attempt: int
    anchor_root: bytes
    cut: tuple[tuple[bytes, int, bytes], ...]
    parameters: bytes

    @property
    def kept_per_chunk(self) -> int:
        """How many values of each 4096 a delta made under this height may keep."""
        return int.from_bytes(self.parameters[24:26], "big")

    @property
    def members(self) -> int:
        """Whose deltas count under this height."""
        return int.from_bytes(self.parameters[26:28], "big")

    @property
    def steps(self) -> int:
        """The usual steps of a delta made under this height; 0 where they do not matter."""
        return int.from_bytes(self.parameters[30:34], "big")

    @property
    def trust(self) -> frozenset[int]:
        """What members are believed under this height, in permille."""
        ends = (34 + 42 * place for place in range(1, self.members + 1))
        return frozenset(int.from_bytes(self.parameters[end - 2 : end], "big") for end in ends)


def parse_operation(data: bytes) -> tuple[Record, Certificate]:
    """A checkpoint operation: its record and the attestation of it; raises Refused."""
    fields = Fields(data, "operation")
    if fields.number(1) != 1:
        raise fields.wrong("it is no checkpoint")
    mesh_id, height, parent = fields.take(32), fields.number(8), fields.take(32)
    round_, proposer, attempt = fields.number(8), fields.take(32), fields.number(4)
    anchor_root, count = fields.take(32), fields.number(2)
    if count > CUT_MAX:
        raise fields.wrong(f"{count} deltas in the cut")
    cut = tuple((fields.take(32), fields.number(8), fields.take(32)) for _ in range(count))
    parameters = fields.blob(RECORD_PARAMETERS_MAX)
    keys = [(member, sequence) for member, sequence, _ in cut]
    if keys != sorted(set(keys)):
        raise fields.wrong("its cut is not in order")
    if round_ != max((sequence for _, sequence in keys), default=0):
        raise fields.wrong("its round is not the largest number in its cut")
    if len(parameters) < 40:
        raise fields.wrong("its parameters are too short")
    digest = hash_of(b"SHOAL-RECORD\x01", fields.since(1))
    attestation = parse_certificate(fields)
    fields.end()
    record = Record(
        digest, mesh_id, height, parent, round_, proposer, attempt, anchor_root, cut, parameters
    )
    return record, attestation


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the model: where it begins in the flat vector, and its scale."""

    name: str
    shape: tuple[int, ...]
    fraction_bits: int
    start: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Genesis:
    """What a genesis document says that a checkpoint is checked against."""

    mesh_id: bytes
    validators: tuple[bytes, ...]
    tensors: tuple[Tensor, ...]
    model: Any
    tokenizer: dict[str, bytes]
    parameters: Parameters
    adapters: Adapters | None

    @property
    def weights_name(self) -> str:
        """The file that holds the anchor as float32."""
        return "adapter_model.safetensors" if self.adapters else "model.safetensors"

    @property
    def total(self) -> int:
        """P, the number of parameters."""
        return self.tensors[-1].start + self.tensors[-1].size

    @property
    def schema_digest(self) -> bytes:
        """SHA-256 of the fixed layout of the tensors' names, shapes and scales."""
        pieces = [len(self.tensors).to_bytes(4, "big")]
        for tensor in self.tensors:
            name = tensor.name.encode()
            pieces += [len(name).to_bytes(2, "big"), bytes([len(tensor.shape)])]
            pieces += [bytes([tensor.fraction_bits]), name]
            pieces += [extent.to_bytes(8, "big") for extent in tensor.shape]
        return hash_of(b"SHOAL-SCHEMA\x01", b"".join(pieces))


def mesh_id_of(document: bytes) -> bytes:
    """The mesh that a genesis document is the beginning of."""
    return hash_of(b"SHOAL-GENESIS\x01", document)


def parse_genesis(document: bytes) -> Genesis:
    """What a genesis document says; raises Refused."""
    if document.count(b"{") + document.count(b"[") > GENESIS_PARTS_MAX:
        raise Refused("malformed-genesis", "genesis.json has too many lists and objects")
    try:
        content = json.loads(document)
        keys = sorted(bytes.fromhex(founder["id"]) for founder in content["founders"])
        genesis = Genesis(
            mesh_id=mesh_id_of(document),
            validators=tuple(keys),
            tensors=_parse_tensors(content["schema"]),
            model=content["model"],
            tokenizer={
                name: bytes.fromhex(digest) for name, digest in content["tokenizer"].items()
            },
            parameters=first_parameters(content["parameters"]),
            adapters=parse_adapters(content),
        )
        sound = (
            content["format"] == 2
            and 1 <= len(keys) <= VALIDATORS_MAX
            and len(set(keys)) == len(keys)
            and {len(key) for key in keys} == {32}
            and all(Path(name).name == name and name[0] != "." for name in genesis.tokenizer)
            and not any(name.lower() in OURS for name in genesis.tokenizer)
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise Refused("malformed-genesis", f"genesis.json cannot be read: {error}") from None
    if not sound:
        raise Refused("malformed-genesis", "genesis.json breaks the rules of a genesis")
    return genesis


def _parse_tensors(content: Any) -> tuple[Tensor, ...]:
    if not 1 <= len(content) <= TENSORS_MAX:
        raise ValueError(f"{len(content)} tensors")
    tensors: list[Tensor] = []
    start = 0
    for entry in content:
        name, shape, bits = entry["name"], tuple(entry["shape"]), entry["fraction_bits"]
        whole = all(type(number) is int for number in (*shape, bits))
        if not whole or len(shape) > 8 or not all(1 <= n <= PARAMETERS_MAX for n in shape):
            raise ValueError(f"the shape of {name!r:.80}")
        if not _NAME.fullmatch(name) or not 0 <= bits <= 30:
            raise ValueError(f"the name or the scale of {name!r:.80}")
        tensors.append(Tensor(name, shape, bits, start))
        start += tensors[-1].size
    if start > PARAMETERS_MAX or len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("too many parameters, or two tensors of one name")
    return tuple(tensors)
