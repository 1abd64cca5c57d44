"""Whether the files of a checkpoint directory are what its certified record says.

The second half of `shoal verify`: verify.py has established the genesis and the record, and from
here on every byte is compared with a hash in one of them. Independent of the code that wrote the
directory, as verify_formats.py says; the anchor is streamed, one chunk in memory at a time.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import BinaryIO

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from shoal.node.verify_formats import (
    MIB,
    OURS,
    Genesis,
    Record,
    Refused,
    Tensor,
    hash_of,
    opened,
    read_file,
)

# Hears what is being checked, how much of it is done, and of how much (0: not known).
Tell = Callable[[str, int, int], None]
# (member, steps) of each delta of a cut.
Steps = Sequence[tuple[bytes, int]]

_LEAF_BYTES = 64 * 1024
_MANIFEST = Struct(">14sB32sQ32sI")
_DELTA = Struct(">32s32sQQIQI32s")
_SETTLED_BYTES_MAX = 128 * MIB
_WEIGHTS_HEADER_MAX = MIB
_TOKENIZER_BYTES_MAX = 64 * MIB


def signed(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `key` (32 bytes, Ed25519) made `signature` (64 bytes) over `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _tree(nodes: list[bytes]) -> bytes:
    """The top of the Merkle tree of RFC 6962 over these leaves, or over aligned subtrees of it."""
    while len(nodes) > 1:
        pairs = zip(nodes[0::2], nodes[1::2], strict=False)
        above = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs]
        nodes = above + nodes[len(nodes) // 2 * 2 :]
    return nodes[0]


def _address(chunk: bytes) -> bytes:
    view = memoryview(chunk)
    leaves = []
    for at in range(0, len(chunk), _LEAF_BYTES):
        leaf = hashlib.sha256(b"\x00")
        leaf.update(view[at : at + _LEAF_BYTES])
        leaves.append(leaf.digest())
    return _tree(leaves)


def check_manifest(directory: Path, genesis: Genesis, record: Record) -> list[bytes]:
    """The addresses of the chunks, which the certified root vouches for; raises Refused."""
    chunks = -(-4 * genesis.total // MIB)
    data = read_file(directory, "manifest.bin", _MANIFEST.size + 32 * chunks)
    if len(data) != _MANIFEST.size + 32 * chunks:
        raise Refused("manifest-size", f"manifest.bin is not one of {chunks} chunks")
    magic, version, schema, total, root, count = _MANIFEST.unpack_from(data)
    if (magic, version) != (b"SHOAL-MANIFEST", 1):
        raise Refused("manifest-version", "manifest.bin is no manifest of version 1")
    if (schema, total, count) != (genesis.schema_digest, genesis.total, chunks):
        raise Refused("manifest-model", "manifest.bin is of another model than the genesis")
    if root != record.anchor_root:
        raise Refused("manifest-root", "the root in manifest.bin is not the certified one")
    addresses = [data[at : at + 32] for at in range(_MANIFEST.size, len(data), 32)]
    bound = schema + total.to_bytes(8, "big") + _tree(addresses)
    if hash_of(b"SHOAL-ANCHOR\x01", bound) != record.anchor_root:
        raise Refused("manifest-addresses", "its addresses do not give the certified root")
    return addresses


def check_settled(directory: Path, record: Record) -> None:
    """Raise Refused unless settled.bin is the state whose digest ends the record's parameters."""
    data = read_file(directory, "settled.bin", _SETTLED_BYTES_MAX)
    if hash_of(b"SHOAL-SETTLED\x01", data) != record.parameters[-32:]:
        raise Refused("settled", "settled.bin is not the state that was certified")


def check_model_files(directory: Path, genesis: Genesis) -> None:
    """Raise Refused unless config.json and the tokenizer are those of the genesis."""
    try:
        expected = (json.dumps(genesis.model, indent=2) + "\n").encode()
    except RecursionError:
        raise Refused("config", "the model of the genesis is nested too deeply") from None
    # Byte for byte: a key that stands twice would be read differently by different readers.
    if read_file(directory, "config.json", len(expected) + MIB) != expected:
        raise Refused("config", "config.json is not the model of the genesis")
    adapters = genesis.adapters
    if adapters is not None:
        found = read_file(directory, "adapter_config.json", len(adapters.config) + MIB)
        if found != adapters.config:
            raise Refused("adapter-config", "adapter_config.json is not that of the genesis")
    for name, digest in genesis.tokenizer.items():
        data = read_file(directory, name, _TOKENIZER_BYTES_MAX)
        if hashlib.sha256(data).digest() != digest:
            raise Refused("tokenizer", f"{name!r} is not the tokenizer file of the genesis")


def _places(file: BinaryIO, size: int, genesis: Genesis, record: Record) -> dict[str, int]:
    """Where in the file of weights each tensor begins; raises Refused unless its header is exact.

    The order of the tensors and of the metadata is the file's own; everything else is written
    anew and compared, so that no two readers can understand it differently.
    """

    def wrong(why: str) -> Refused:
        return Refused("weights-header", f"{genesis.weights_name}: {why}")

    length = int.from_bytes(file.read(8), "little")
    if length > min(_WEIGHTS_HEADER_MAX, size - 8):
        raise wrong(f"a header of {length} bytes")
    header = file.read(length)
    facts = {
        "format": "pt",
        "shoal_height": str(record.height),
        "shoal_root": record.anchor_root.hex(),
    }
    tensors = {tensor.name: tensor for tensor in genesis.tensors}
    try:
        content = json.loads(header)
        metadata = {key: facts[key] for key in content.pop("__metadata__")}
        order = [tensors[name] for name in content]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise wrong(f"its header is not that of this checkpoint ({error!r:.80})") from None
    places: dict[str, int] = {}
    expected: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for tensor in order:
        end = at + 4 * tensor.size
        places[tensor.name] = 8 + length + at
        expected[tensor.name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    canonical = json.dumps(expected, separators=(",", ":")).encode()
    complete = len(metadata) == len(facts) and len(places) == len(tensors)
    if not complete or header != canonical.ljust(-(-len(canonical) // 8) * 8):
        raise wrong("its header does not state the tensors of the genesis")
    if size != 8 + length + at:
        due = 8 + length + at
        raise Refused("weights-size", f"{genesis.weights_name} has {size} bytes, not {due}")
    return places


def check_weights(
    directory: Path, genesis: Genesis, record: Record, addresses: list[bytes], tell: Tell
) -> None:
    """Raise Refused unless each chunk has its address and the file of weights is the anchor."""
    names = {address.hex() for address in addresses}
    try:
        found = set(os.listdir(directory / "chunks"))
    except (FileNotFoundError, NotADirectoryError):
        found = set()
    for name in sorted(names - found):
        raise Refused("missing-chunk", f"chunks/{name} is not there")
    for name in sorted(found - names):
        raise Refused("extra-chunk", f"chunks/{name!r} is no part of the certified anchor")
    limit = 4 * genesis.total + _WEIGHTS_HEADER_MAX
    with opened(directory, genesis.weights_name, limit) as (file, size):
        places = _places(file, size, genesis, record)
        pieces = _pieces(genesis)
        for number, address in enumerate(addresses):
            tell("checking weights, chunks", number, len(addresses))
            expected = min(MIB, 4 * genesis.total - number * MIB)
            data = _chunk(directory, address, expected)
            values: NDArray[np.int32] = np.frombuffer(data, dtype="<i4")
            for tensor, start, end in pieces[number]:
                at = number * (MIB // 4)
                _compare(file, places[tensor.name], tensor, values[start - at : end - at], start)


def _pieces(genesis: Genesis) -> dict[int, list[tuple[Tensor, int, int]]]:
    """For each chunk the runs of the flat vector in it that belong to one tensor."""
    per_chunk = MIB // 4
    pieces: dict[int, list[tuple[Tensor, int, int]]] = {}
    for tensor in genesis.tensors:
        end = tensor.start + tensor.size
        for number in range(tensor.start // per_chunk, (end - 1) // per_chunk + 1):
            first = max(tensor.start, number * per_chunk)
            last = min(end, (number + 1) * per_chunk)
            pieces.setdefault(number, []).append((tensor, first, last))
    return pieces


def _chunk(directory: Path, address: bytes, expected: int) -> bytes:
    name = f"chunks/{address.hex()}"
    with opened(directory, name, MIB) as (file, size):
        data = file.read(size)
    if len(data) != expected:
        raise Refused("chunk-size", f"{name} has {len(data)} bytes, not {expected}")
    if _address(data) != address:
        raise Refused("chunk", f"{name} does not have the hash that it is named by")
    return data


def _compare(
    file: BinaryIO,
    place: int,
    tensor: Tensor,
    values: NDArray[np.int32],
    at: int,
) -> None:
    """`values` are the certified integers from flat position `at` on, all in this tensor."""
    # int32 to float32 rounds half to even, and the factor is a power of two: exact.
    weights = values.astype(np.float32) * np.float32(2.0**-tensor.fraction_bits)
    file.seek(place + 4 * (at - tensor.start))
    if file.read(4 * len(values)) != weights.astype("<f4").tobytes():
        raise Refused("weights", f"{tensor.name} in the weights is not the certified anchor")


def check_deltas(directory: Path, genesis: Genesis, record: Record) -> Steps | None:
    """Whether the signed deltas of the cut are here: whose each is and the steps it holds, or None.

    Raises Refused where they are others.
    """
    if not (directory / "deltas.bin").exists():
        return None
    steps = []
    with opened(directory, "deltas.bin", 1 << 50) as (file, size):
        if int.from_bytes(file.read(4), "big") != len(record.cut):
            raise Refused("deltas-count", f"deltas.bin does not hold {len(record.cut)} deltas")
        for member, sequence, delta_id in record.cut:
            named = (member, sequence, delta_id)
            steps.append((member, _check_delta(file, size, genesis.mesh_id, named)))
        if file.tell() != size:
            raise Refused("deltas-size", f"deltas.bin has {size - file.tell()} bytes too many")
    return steps


def _check_delta(file: BinaryIO, size: int, mesh_id: bytes, named: tuple[bytes, int, bytes]) -> int:
    """The steps that it holds."""
    member, sequence, delta_id = named
    what = f"delta {sequence} of {member.hex()[:8]}"
    length = int.from_bytes(file.read(4), "big")
    header, signature = file.read(_DELTA.size), file.read(64)
    if length < _DELTA.size + 64 or file.tell() - _DELTA.size - 64 + length > size:
        raise Refused("deltas-size", f"deltas.bin: {what} is not all there")
    if hashlib.sha256(header).digest() != delta_id:
        raise Refused("delta-id", f"deltas.bin: {what} is another one than the cut names")
    mesh, sender, number, _, steps, _, frame_bytes, frame_hash = _DELTA.unpack(header)
    if (mesh, sender, number) != (mesh_id, member, sequence):
        raise Refused("delta-header", f"deltas.bin: {what} says that it is another one")
    if not signed(member, b"SHOAL-DELTA\x01" + header, signature):
        raise Refused("delta-signature", f"deltas.bin: {what} is not signed by that member")
    if length != _DELTA.size + 64 + frame_bytes:
        raise Refused("deltas-size", f"deltas.bin: {what} is not as long as its header says")
    digest = hashlib.sha256()
    for piece in _stream(file, frame_bytes):
        digest.update(piece)
    if digest.digest() != frame_hash:
        raise Refused("delta-frame", f"deltas.bin: the frame of {what} is not the signed one")
    return int(steps)


def _stream(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (piece := file.read(min(size, MIB))):
        size -= len(piece)
        yield piece


def check_nothing_else(directory: Path, genesis: Genesis) -> None:
    """Raise Refused where a file lies there that was not checked.

    A reader such as from_pretrained acts on the mere presence of some files.
    """
    others = {"model.safetensors", "adapter_model.safetensors"} - {genesis.weights_name}
    if genesis.adapters is None:
        others.add("adapter_config.json")
    known = {*OURS, *genesis.tokenizer} - {"anchor.bin"} - others
    extra = sorted(set(os.listdir(directory)) - known)
    if extra:
        names = ", ".join(f"{name!r}" for name in extra[:8])
        raise Refused("extra-file", f"nothing certifies {names}; remove what you did not add")
