"""A second implementation of certificate and NEW-VIEW verification.

It shares no code with consensus/ on purpose: what the replicas accept is checked by somebody who
read the page and not the program. Layout of a certificate (big-endian): kind u8, epoch u64, view
u64, sequence u64, digest[32], bitmap u32, then 64 bytes per set bit, lowest bit first.
"""

import hashlib
import struct
from collections.abc import Callable
from typing import Protocol

Verify = Callable[[bytes, bytes, bytes], bool]
PRE_PREPARE, PREPARED, COMMITTED, STABLE, READY = 1, 2, 3, 4, 7
NULL_DIGEST = hashlib.sha256(b"SHOAL-OPERATION\x01").digest()


def vote_message(
    kind: int, mesh_id: bytes, epoch: int, view: int, sequence: int, digest: bytes
) -> bytes:
    """What the signature of a vote covers."""
    header = b"SHOAL-BFT\x01" + bytes([kind]) + mesh_id
    return header + struct.pack(">QQQ", epoch, view, sequence) + digest


def certificate_problem(
    data: bytes,
    *,
    mesh_id: bytes,
    epoch: int,
    keys: tuple[bytes, ...],
    interval: int,
    verify: Verify,
) -> str | None:
    """Why these bytes prove nothing; None when they do.

    In a prepared certificate exactly one signature is a PRE-PREPARE: that of whose turn it is at
    this sequence, or that of the validator that starts the view and carries over.
    """
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
    if kind in (STABLE, READY) and view != 0:
        return "a view where there is none"
    proposers = {view % n, (view + (sequence - 1) // interval) % n} if kind == PREPARED else set()
    proposed = 0
    for position, index in enumerate(signers):
        signature = rest[64 * position : 64 * position + 64]
        message = vote_message(kind, mesh_id, epoch, view, sequence, digest)
        if verify(keys[index], message, signature):
            continue
        message = vote_message(PRE_PREPARE, mesh_id, epoch, view, sequence, digest)
        if index not in proposers or not verify(keys[index], message, signature):
            return f"signature of {index}"
        proposed += 1
    if kind == PREPARED and proposed != 1:
        return "no pre-prepare"
    return None


class Proof(Protocol):
    """A certificate, as far as this page reads it."""

    @property
    def kind(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def view(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def digest(self) -> bytes: ...
    def to_bytes(self) -> bytes: ...


class AboutView(Protocol):
    """What a VIEW-CHANGE and a NEW-VIEW both say."""

    @property
    def epoch(self) -> int: ...
    @property
    def view(self) -> int: ...
    @property
    def signer(self) -> int: ...


class Change(AboutView, Protocol):
    """A VIEW-CHANGE, as far as this page reads it."""

    @property
    def low(self) -> int: ...
    @property
    def stability(self) -> Proof | None: ...
    @property
    def prepared(self) -> tuple[Proof, ...]: ...


class View(AboutView, Protocol):
    """A NEW-VIEW, as far as this page reads it."""

    @property
    def view_changes(self) -> tuple[Change, ...]: ...
    @property
    def proposals(self) -> tuple[tuple[bytes, bytes], ...]: ...


Prove = Callable[[bytes], str | None]


def view_change_problem(
    change: Change, *, epoch: int, start: int, window: int, prove: Prove
) -> str | None:
    """Why this VIEW-CHANGE must not count, its signature aside; None when it may.

    `start` is the sequence that this epoch begins after; the epoch itself is the proof of that.
    """
    stability = change.stability
    if change.epoch != epoch:
        return "of another epoch"
    if change.low < start or (stability is None) != (change.low == start):
        return "watermark without proof"
    if stability is not None:
        claim = (int(stability.kind), stability.epoch, stability.sequence)
        if claim != (STABLE, epoch, change.low):
            return "proof of another watermark"
        problem = prove(stability.to_bytes())
        if problem is not None:
            return f"watermark: {problem}"
    sequences = [proof.sequence for proof in change.prepared]
    if any(not change.low < sequence <= change.low + window for sequence in sequences):
        return "prepared outside the window"
    if len(set(sequences)) != len(sequences):
        return "one slot prepared twice"
    for proof in change.prepared:
        if (int(proof.kind), proof.epoch) != (PREPARED, epoch) or proof.view >= change.view:
            return "prepared in a later view or another epoch, or not prepared"
        problem = prove(proof.to_bytes())
        if problem is not None:
            return f"prepared: {problem}"
    return None


def new_view_problem(
    message: View, *, n: int, epoch: int, start: int, window: int, prove: Prove
) -> str | None:
    """Why no honest replica may live in this view; None when V is a quorum and O follows."""
    changes = message.view_changes
    if message.epoch != epoch:
        return "of another epoch"
    if message.signer != message.view % n:
        return "not from its primary"
    if len({change.signer for change in changes}) != len(changes):
        return "one VIEW-CHANGE counted twice"
    if 2 * len(changes) < n + (n - 1) // 3 + 1:
        return "quorum"
    best: dict[int, tuple[int, bytes]] = {}
    for change in changes:
        if change.view != message.view:
            return "VIEW-CHANGE of another view"
        problem = view_change_problem(change, epoch=epoch, start=start, window=window, prove=prove)
        if problem is not None:
            return problem
        for proof in change.prepared:
            best[proof.sequence] = max(
                best.get(proof.sequence, (-1, b"")), (proof.view, proof.digest)
            )
    low = max(change.low for change in changes)
    end = max([low, *best])
    expected = [best.get(s, (0, NULL_DIGEST))[1] for s in range(low + 1, end + 1)]
    if [digest for digest, _ in message.proposals] != expected:
        return "other proposals than what was prepared"
    return None
