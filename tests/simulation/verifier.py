"""A second implementation of certificate verification, from the bytes and nothing else.

It shares no code with consensus/certificate.py on purpose: what the replicas accept is checked
by somebody who read the page and not the program. Layout (big-endian): kind u8, epoch u64, view
u64, sequence u64, digest[32], bitmap u32, then 64 bytes per set bit, lowest bit first.
"""

import struct
from collections.abc import Callable

Verify = Callable[[bytes, bytes, bytes], bool]
PRE_PREPARE, PREPARED = 1, 2


def certificate_problem(
    data: bytes, *, mesh_id: bytes, epoch: int, keys: tuple[bytes, ...], verify: Verify
) -> str | None:
    """Why these bytes prove nothing; None when they do."""
    kind, named_epoch, view, sequence, digest, bitmap = struct.unpack_from(">BQQQ32sI", data)
    rest = data[struct.calcsize(">BQQQ32sI") :]
    n = len(keys)
    f = (n - 1) // 3
    signers = [index for index in range(32) if bitmap & (1 << index)]
    if named_epoch != epoch:
        return "epoch"
    if len(rest) != 64 * len(signers) or any(index >= n for index in signers):
        return "shape"
    if 2 * len(signers) < n + f + 1:
        return "quorum"
    if kind == PREPARED and view % n not in signers:
        return "no pre-prepare"
    for position, index in enumerate(signers):
        signed = PRE_PREPARE if kind == PREPARED and index == view % n else kind
        header = b"SHOAL-BFT\x01" + bytes([signed]) + mesh_id
        message = header + struct.pack(">QQQ", epoch, view, sequence) + digest
        if not verify(keys[index], message, rest[64 * position : 64 * position + 64]):
            return f"signature of {index}"
    return None
