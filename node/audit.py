"""`shoal audit`: does the certified model follow from the signed deltas, and whose are they?

`shoal verify` proves that a quorum signed a checkpoint. This goes one step further and believes
the quorum only in what cannot be recomputed: it takes the checkpoint before, applies the signed
deltas of the cut with the code that the nodes run, and compares the root. So it finds what even a
lying quorum cannot hide, as far back as somebody kept the checkpoints.

Not recomputed: the next epoch's weights, which need the member list of that moment.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from shoal.compression.codec import SparseDelta, decode, max_frame_bytes
from shoal.compression.frame import FrameError
from shoal.consensus.epochs import parse_link
from shoal.consensus.errors import ConsensusError
from shoal.consensus.records import Checkpoint, CheckpointRecord, CutEntry, parse_operation
from shoal.gossip.anchor import Anchor
from shoal.gossip.book import DeltaBook
from shoal.gossip.delta import BLOB_OVERHEAD_BYTES, Delta, DeltaReference
from shoal.gossip.errors import DeltaError, GossipError
from shoal.gossip.parameters import (
    Contribution,
    EpochParameters,
    contribution_of,
    next_parameters,
)
from shoal.gossip.schema import ModelSchema
from shoal.gossip.settled import SettledState
from shoal.node.checkpoint_dirs import checkpoint_directories
from shoal.node.checkpoints import LINK_BYTES_MAX, read_checkpoint, read_list
from shoal.node.errors import DamagedError, PeerError, UserError
from shoal.node.genesis import Genesis, anchor_from_bytes, parse_document
from shoal.node.identity import verify
from shoal.node.mesh_parameters import follow
from shoal.node.parameters import MeshParameters
from shoal.node.progress import tell
from shoal.node.verify import verify_checkpoint

DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Share:
    """What one member contributed to a cut.

    kept: values in its deltas; norm: L2 norm of all that its deltas moved the weights by, with
    gain, weight and clip; percent: that norm in the sum of all members' norms.
    """

    member: str
    deltas: int
    kept: int
    tokens: int
    norm: float
    percent: float


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as the certified record says; `reason` is a word, `detail` a line."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Audit:
    """The replay of one checkpoint. root: what the deltas give, in hex."""

    height: int
    mesh_id: str
    certified_root: str
    root: str
    shares: tuple[Share, ...]
    problems: tuple[Problem, ...]

    @property
    def reproduced(self) -> bool:
        """Whether every delta was in order and all of them give what was certified."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {**asdict(self), "reproduced": self.reproduced}

    def lines(self) -> list[str]:
        """The same for a person."""
        verdict = "reproduced, bit for bit" if self.reproduced else "NOT REPRODUCED"
        deltas, tokens = (
            sum(share.deltas for share in self.shares),
            sum(share.tokens for share in self.shares),
        )
        head = (
            f"{'member':<16} {'deltas':>6} {'kept':>12} {'tokens':>12} {'L2 norm':>12} {'share':>7}"
        )
        return [
            f"checkpoint {self.height} of mesh {self.mesh_id}: {verdict}",
            f"certified root {self.certified_root}",
            f"replayed root  {self.root}  from {deltas} deltas, {tokens:,} tokens",
            head,
            *(
                f"{share.member[:16]:<16} {share.deltas:>6} {share.kept:>12,} {share.tokens:>12,} "
                f"{share.norm:>12.6g} {share.percent:>6.1f}%"
                for share in self.shares
            ),
            *(f"problem: {problem.reason}: {problem.detail}" for problem in self.problems),
        ]


@dataclass(frozen=True, slots=True)
class _Base:
    """The state that a cut is applied to."""

    anchor: Anchor
    settled: SettledState


@dataclass(frozen=True, slots=True)
class _Opened:
    delta: Delta
    sparse: SparseDelta
    contribution: Contribution


def audit_checkpoint(directory: Path, previous: Path | None = None) -> Audit:
    """Replay one checkpoint directory.

    previous: the directory of the checkpoint before it, or at height 1 one that holds the
    genesis' anchor.bin; by default what lies beside it as in a node's directory.
    Raises Refused where `shoal verify` would, DamagedError where the checkpoint before it is not
    what it follows from, and a plain UserError where something was not kept.
    """
    proof = verify_checkpoint(directory, deltas=False, tell=tell)
    record = _record(directory)
    if not (directory / "deltas.bin").exists():
        raise UserError(
            f"{directory} has no deltas.bin: its node fetched that state whole; audit the "
            "checkpoint on a node that was there"
        )
    genesis = _genesis(directory)
    base = _base(directory, genesis, record, previous)
    problems: list[Problem] = []
    opened = list(_opened(directory, genesis.schema, base, record, problems))
    anchor, shares = _replay(base.anchor, genesis.schema, opened)
    root = anchor.root()
    # With a delta missing, everything else must differ: one cause is one problem.
    if not problems:
        mesh = _in_force(directory, genesis)
        problems += _differences(genesis, mesh, base, record, opened, root)
    return Audit(
        height=record.height,
        mesh_id=proof.mesh_id.hex(),
        certified_root=record.anchor_root.hex(),
        root=root.hex(),
        shares=shares,
        problems=tuple(problems),
    )


def audit_all(directory: Path, previous: Path | None = None) -> tuple[list[Audit], dict[int, str]]:
    """Replay a checkpoint directory, or every checkpoint of a node's directory.

    Returns the audits by height, and why a height of a node's directory could not be audited.
    Raises what `audit_checkpoint` raises, and a UserError where not one height could be.
    """
    if not (directory / "checkpoints").is_dir():
        return [audit_checkpoint(directory, previous)], {}
    if previous is not None:
        raise UserError("--previous goes with one checkpoint; name DIR/checkpoints/HEIGHT")
    audits, skipped = [], {}
    for height, path in checkpoint_directories(directory).items():
        try:
            audits.append(audit_checkpoint(path))
        except DamagedError:
            raise
        except UserError as error:
            skipped[height] = str(error)
    if not audits:
        why = next(iter(skipped.values()), "it holds no checkpoint yet")
        raise UserError(f"nothing in {directory} can be audited: {why}")
    return audits, skipped


def _record(directory: Path) -> CheckpointRecord:
    try:
        operation = parse_operation((directory / "operation.bin").read_bytes())
    except ConsensusError as error:
        raise DamagedError(f"{directory}/operation.bin cannot be read: {error}") from None
    if not isinstance(operation, Checkpoint):
        raise DamagedError(f"{directory}/operation.bin is no checkpoint")
    return operation.record


def _genesis(directory: Path) -> Genesis:
    try:
        return parse_document((directory / "genesis.json").read_bytes())
    except PeerError as error:
        raise DamagedError(f"{directory}/genesis.json is no genesis: {error}") from None


def _in_force(directory: Path, genesis: Genesis) -> MeshParameters:
    """The mesh parameters of the epoch that certified this checkpoint: the last in its chain."""
    links = read_list(directory / "epochs.bin", LINK_BYTES_MAX)
    return follow(genesis.parameters, (parse_link(link).record.parameters for link in links))


def _base(
    directory: Path, genesis: Genesis, record: CheckpointRecord, previous: Path | None
) -> _Base:
    """What the record says it follows from: its `parent` names it, so no certificate is needed."""
    around = directory.resolve().parent
    if record.height == 1:
        return _genesis_base(previous or around.parent / "genesis", genesis)
    before = previous or around / str(record.height - 1)
    if not (before / "operation.bin").is_file():
        raise UserError(
            f"the checkpoint before {directory} is not at {before}; name it with --previous"
        )
    files = read_checkpoint(before, record.height - 1)
    parent = _record(before)
    if parent.digest != record.parent:
        raise DamagedError(f"{before} is not the checkpoint that {directory} follows from")
    try:
        settled = SettledState.from_bytes(files.settled)
        anchor = anchor_from_bytes(genesis.schema, files.anchor)
    except (GossipError, PeerError) as error:
        raise DamagedError(f"{before} is damaged: {error}") from None
    if settled.digest != parent.parameters[-DIGEST_BYTES:] or anchor.root() != parent.anchor_root:
        raise DamagedError(f"{before} is damaged: its state is not the one that was certified")
    tensors = {len(epoch.clip) for epoch in settled.epochs}
    if settled.height != parent.height or tensors != {len(genesis.schema.tensors)}:
        raise DamagedError(f"{before} was certified with a state that no mesh can have")
    return _Base(anchor, settled)


def _genesis_base(directory: Path, genesis: Genesis) -> _Base:
    path = directory / "anchor.bin"
    if not path.is_file():
        raise UserError(
            f"the first checkpoint follows from the genesis, and {path} is not there; name a "
            "node's genesis directory with --previous"
        )
    try:
        anchor = genesis.read_anchor(path.read_bytes())
    except PeerError as error:
        raise DamagedError(f"{path} is damaged: {error}") from None
    state = SettledState.genesis(genesis.epoch_parameters(), staleness=genesis.parameters.staleness)
    return _Base(anchor, state)


def _opened(
    directory: Path,
    schema: ModelSchema,
    base: _Base,
    record: CheckpointRecord,
    problems: list[Problem],
) -> Iterator[_Opened]:
    """The deltas that are in order, one by one; adds a problem for each that is not."""
    book = DeltaBook(record.mesh_id, base.settled)
    kept = max(epoch.kept_per_chunk for epoch in base.settled.epochs)
    frame_max = max_frame_bytes(schema.layout, kept)
    blobs = read_list(directory / "deltas.bin", BLOB_OVERHEAD_BYTES + frame_max)
    for number, entry in enumerate(record.cut):
        tell(f"replaying checkpoint {record.height}, deltas", number, len(record.cut))
        name = f"delta {entry.sequence} of {entry.member.hex()[:16]}"
        try:
            blob = next(blobs, None)
        except GossipError as error:
            problems.append(Problem(error.reason, f"{name} and what follows: {error}"))
            return
        if blob is None:
            problems.append(Problem("missing", f"{name} is not in deltas.bin"))
            continue
        try:
            yield _open(blob, entry, book, schema, frame_max)
        except (GossipError, FrameError) as error:
            problems.append(Problem(error.reason, f"{name}: {error}"))
    try:
        left = sum(1 for _ in blobs)
    except GossipError as error:
        problems.append(Problem(error.reason, str(error)))
    else:
        if left:
            problems.append(Problem("not-in-the-cut", f"{left} more deltas than the cut names"))


def _open(
    blob: bytes, entry: CutEntry, book: DeltaBook, schema: ModelSchema, frame_max: int
) -> _Opened:
    delta = Delta.from_bytes(blob, frame_bytes_max=frame_max)
    header = delta.header
    if header.reference != DeltaReference(entry.member, entry.sequence, entry.delta_id):
        found = f"{header.sequence} of {header.sender.hex()[:16]}"
        raise DeltaError("out-of-place", f"delta {found}, id {header.id.hex()[:16]}, stands there")
    parameters = book.examine(header)
    delta.require_signature(verify)
    sparse = decode(delta.frame, schema.layout, kept_per_chunk=parameters.kept_per_chunk)
    contribution = contribution_of(
        header, sparse, parameters=parameters, schema=schema, load=lambda: sparse
    )
    return _Opened(delta, sparse, contribution)


def _replay(
    base: Anchor, schema: ModelSchema, opened: Sequence[_Opened]
) -> tuple[Anchor, tuple[Share, ...]]:
    """Apply the deltas, which stand in order of their members, and measure each member's part."""
    anchor = base.copy()
    parts = []
    for member, group in groupby(opened, key=lambda each: each.delta.header.sender):
        before = anchor.values.clone()
        own = list(group)
        for each in own:
            anchor.apply(each.sparse, each.contribution.increments)
        parts.append((member, own, _norm(schema, anchor.values - before)))
    total = sum(norm for _, _, norm in parts)
    return anchor, tuple(
        Share(
            member=member.hex(),
            deltas=len(own),
            kept=sum(len(each.sparse.indices) for each in own),
            tokens=sum(each.delta.header.tokens for each in own),
            norm=norm,
            percent=100 * norm / total if total else 0.0,
        )
        for member, own, norm in parts
    )


def _norm(schema: ModelSchema, steps: torch.Tensor) -> float:
    """L2 norm of int32 [P] steps, in the units of the weights."""
    squares = 0.0
    for run in schema.scale_runs:
        part = steps[run.start : run.end].double() * 2.0**-run.fraction_bits
        squares += float(part.square().sum())
    return math.sqrt(squares)


def _differences(
    genesis: Genesis,
    mesh: MeshParameters,
    base: _Base,
    record: CheckpointRecord,
    opened: Sequence[_Opened],
    root: bytes,
) -> Iterator[Problem]:
    """What the record says that does not follow from its own cut."""
    if root != record.anchor_root:
        yield Problem("root-differs", "these deltas do not give the certified root")
    try:
        certified = EpochParameters.from_bytes(record.parameters[:-DIGEST_BYTES])
    except GossipError as error:
        yield Problem(error.reason, f"the next epoch's parameters: {error}")
        return
    # Weights depend on the member list, which is not here: the certified ones are believed. Nothing
    # else depends on more than who the members are.
    recomputed = next_parameters(
        base.settled.parameters(base.settled.height),
        [each.contribution for each in opened],
        [(member, 1, 1000) for member, _ in certified.weights],
        genesis.schema,
        clip_factor=mesh.clip_factor,
        kept_per_chunk=mesh.kept_per_chunk(len(certified.weights)),
        normalise_steps=mesh.normalise_steps,
        aligned=mesh.trust,
        weights=certified.weights,
    )
    for name in ("height", "alpha", "clip", "kept_per_chunk", "tokens", "trust", "steps"):
        if getattr(recomputed, name) != getattr(certified, name):
            yield Problem("parameters-differ", f"the next {name} does not follow from the cut")
    settled = base.settled.after((each.delta.header.key for each in opened), certified)
    if settled.digest != record.parameters[-DIGEST_BYTES:]:
        yield Problem("settled-differs", "the settled state does not follow from the cut")
