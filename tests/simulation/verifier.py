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
    data: bytes,
    *,
    mesh_id: bytes,
    epoch: int,
    keys: tuple[bytes, ...],
    interval: int,
    verify: Verify,
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
    proposers = {view % n, (view + (sequence - 1) // interval) % n} & set(signers)
    if kind == PREPARED and not proposers:
        return "no pre-prepare"
    pre_prepared = 0
    for position, index in enumerate(signers):
        signature = rest[64 * position : 64 * position + 64]
        rest_of_message = mesh_id + struct.pack(">QQQ", epoch, view, sequence) + digest

        def signed(as_kind: int, key: bytes = keys[index]) -> bool:
            message = b"SHOAL-BFT\x01" + bytes([as_kind]) + rest_of_message  # noqa: B023
            return verify(key, message, signature)  # noqa: B023

        if signed(kind):
            continue
        if kind != PREPARED or index not in proposers or not signed(PRE_PREPARE):
            return f"signature of {index}"
        pre_prepared += 1
    if kind == PREPARED and pre_prepared != 1:
        return "not one pre-prepare"
    return None
