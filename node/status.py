"""Everything that a node tells about itself, gathered into one StatusReply.

Reads, never waits: it runs on the event loop for whoever asks.
"""

import asyncio
from collections import Counter
from dataclasses import asdict, dataclass, field

import psutil

from shoal import __version__
from shoal.consensus.quorum import quorum
from shoal.gossip.liveness import Opinion
from shoal.gossip.spot_check import Strikes
from shoal.node.backup import backup_warnings
from shoal.node.certified import Certified
from shoal.node.chronicle import Chronicle
from shoal.node.config import Settings
from shoal.node.consensus_driver import ConsensusDriver
from shoal.node.failure_detection import FailureDetection, why
from shoal.node.genesis import Genesis
from shoal.node.gossip_driver import GossipDriver
from shoal.node.holdings import retention_of
from shoal.node.links import Links
from shoal.node.membership import why_out
from shoal.node.mesh_parameters import ParametersInForce
from shoal.node.meters import LoopLag, Meters
from shoal.node.parameters import MeshParameters
from shoal.node.peer_record import PeerRecord
from shoal.node.round import RoundFacts
from shoal.node.shared_model import SharedModel
from shoal.proto import inspect_pb2
from shoal.proto.inspect_pb2 import StatusReply

__all__ = ["CheckpointFacts", "NodeState", "StatusReply", "status_reply"]

CHECKPOINTS_SHOWN = 64
# What honest peers say twice or too late; refusing it is the normal course, not worth a number.
ORDINARY = frozenset(
    {
        "already-executed",
        "not-for-observers",
        "not-in-the-new-view",
        "not-our-candidate",
        "old-view",
        "other-height",
        "other-view",
        "our-own-candidate",
        "outside-window",
        "stale-height",
        "stale-time",
        "wrong-parent",
    }
)


@dataclass(slots=True)
class CheckpointFacts:
    """One committed checkpoint as `shoal status` shows it."""

    height: int
    round: int
    root: bytes
    record: bytes
    signers: tuple[bytes, ...]
    view: int
    deltas: int
    tokens: int
    materialised: bool = False


@dataclass(slots=True)
class NodeState:
    """The parts of a running node that status is made from."""

    settings: Settings
    genesis: Genesis
    mesh: ParametersInForce
    node_id: bytes
    meters: Meters
    lag: LoopLag
    links: Links
    model: SharedModel
    consensus: ConsensusDriver
    gossip: GossipDriver
    detection: FailureDetection
    chronicle: Chronicle
    strikes: Strikes
    facts: RoundFacts = field(default_factory=RoundFacts)
    device: str = ""
    shard_tokens: int = 0
    checkpoints: dict[int, CheckpointFacts] = field(default_factory=dict)
    # On the event loop's clock; 0 where none was committed since this node started.
    committed_at: float = 0.0

    def remember(self, found: Certified, *, materialised: bool) -> None:
        """Keep what is shown of a checkpoint, the newest ones only."""
        pending = (header.key for header in self.model.book.pending())
        now = asyncio.get_running_loop().time()
        self.chronicle.committed(now, found.record, pending, seen=not materialised)
        keys = self.consensus.replica.epochs.validators(found.certificate.epoch).keys
        facts = CheckpointFacts(
            height=found.height,
            round=found.record.round,
            root=found.record.anchor_root,
            record=found.record.digest,
            signers=tuple(keys[signer] for signer in found.certificate.signers),
            view=found.certificate.view,
            deltas=len(found.record.cut),
            tokens=found.parameters.tokens,
            materialised=materialised,
        )
        known = self.checkpoints.get(facts.height)
        if known is None and not materialised:
            self.committed_at = now
        if known is not None:
            facts.materialised = facts.materialised or known.materialised
        self.checkpoints[facts.height] = facts
        for height in sorted(self.checkpoints)[:-CHECKPOINTS_SHOWN]:
            del self.checkpoints[height]


def status_reply(state: NodeState) -> StatusReply:
    """Return the node's state as it is now."""
    settings, replica = state.settings, state.consensus.replica
    p50, p99, worst = state.lag.quantiles_ms()
    validator = state.node_id in replica.validators.keys
    member = state.node_id in replica.ledger.members
    rejected = state.meters.rejected + Counter(state.consensus.refused())
    for reason in ORDINARY:
        del rejected[reason]
    return StatusReply(
        node=settings.node.name,
        node_id=state.node_id.hex(),
        mesh_id=state.genesis.mesh_id.hex(),
        version=__version__,
        uptime_seconds=state.meters.uptime_seconds(),
        address=settings.node.advertised,
        warnings=backup_warnings(settings.node.directory, state.node_id),
        role="validator" if validator else "member" if member else "joining",
        training=_training(state),
        gossip=_gossip(state),
        consensus=_consensus(state),
        checkpoints=[_checkpoint(state, height) for height in sorted(state.checkpoints)],
        peers=_peers(state),
        event_loop=inspect_pb2.Loop(lag_p50_ms=p50, lag_p99_ms=p99, lag_max_ms=worst),
        rejected=dict(rejected),
        sent_bytes=dict(state.meters.sent_bytes),
        received_bytes=dict(state.meters.received_bytes),
        resident_memory_bytes=psutil.Process().memory_info().rss,
        mesh_parameters=_mesh(state.mesh.now()),
        archived_heights=retention_of(settings).shared(state.model.height),
        decided_parameters=_mesh(state.mesh.decided(replica.ledger)),
        evicted=[
            inspect_pb2.Evicted(node_id=member.hex(), why=why_out(eviction))
            for member, eviction in sorted(replica.ledger.evictions().items())
        ],
    )


def _mesh(mesh: MeshParameters | None) -> inspect_pb2.MeshParameters | None:
    return inspect_pb2.MeshParameters(**asdict(mesh)) if mesh is not None else None


def _training(state: NodeState) -> inspect_pb2.Training:
    facts, settings, rules = state.facts, state.settings, state.model.rules
    elapsed = asyncio.get_running_loop().time() - facts.began_at if facts.began_at else 0.0
    if facts.ended_at:
        elapsed = facts.ended_at - facts.began_at
    return inspect_pb2.Training(
        state=facts.state,
        device=state.device,
        parameters=state.model.schema.layout.total,
        round=facts.sequence,
        max_rounds=settings.train.max_rounds,
        local_steps=rules.local_steps,
        rounds_per_checkpoint=rules.rounds_per_checkpoint,
        loss=facts.loss,
        tokens_per_second=facts.tokens_per_second,
        steps=facts.steps,
        tokens=facts.tokens,
        shard_tokens=state.shard_tokens,
        computing_share=min(1.0, facts.computing_seconds / elapsed) if elapsed else 0.0,
        residual_norm=facts.residual_norm,
    )


def _gossip(state: NodeState) -> inspect_pb2.Gossip:
    facts, parameters = state.facts, state.model.parameters
    return inspect_pb2.Gossip(
        pending_deltas=len(state.model.book.pending()),
        missing_deltas=state.gossip.missing,
        applied_deltas=state.model.applied,
        late_deltas=state.model.late,
        fetches=state.gossip.fetching,
        bits_per_kept_value=8 * facts.frame_bytes / max(1, facts.values_kept),
        compression_vs_fp32=4 * facts.values_dense / max(1, facts.frame_bytes),
        alpha=parameters.alpha,
        kept_per_chunk=parameters.kept_per_chunk,
        weight=dict(parameters.weights).get(state.node_id, 0.0),
    )


def _consensus(state: NodeState) -> inspect_pb2.Consensus:
    replica = state.consensus.replica
    seen = replica.inspect()
    me = replica.ledger.members.get(state.node_id)
    return inspect_pb2.Consensus(
        epoch=seen.epoch,
        view=seen.view,
        view_active=seen.active,
        last_executed=seen.executed,
        low_watermark=seen.low,
        validators=len(seen.validators),
        quorum=quorum(len(seen.validators)),
        byzantine_tolerance=seen.faults_tolerated,
        members=len(replica.ledger.members),
        pending_operations=seen.pending,
        commit_seconds=_seconds_since(state.committed_at),
        epoch_digest=replica.epochs.record(seen.epoch).digest.hex(),
        invitation_floor=me.issued.floor if me is not None else 0,
        may_validate=me is not None and me.may_validate,
        inbox=state.consensus.waiting,
    )


def _seconds_since(then: float) -> float:
    return asyncio.get_running_loop().time() - then if then else -1.0


def _checkpoint(state: NodeState, height: int) -> inspect_pb2.Checkpoint:
    facts = state.checkpoints[height]
    return inspect_pb2.Checkpoint(
        height=facts.height,
        round=facts.round,
        root=facts.root.hex(),
        signatures=len(facts.signers),
        signers=[signer.hex() for signer in facts.signers],
        view=facts.view,
        deltas=facts.deltas,
        held_out_loss=state.facts.evaluations.get(height, 0.0),
        tokens=facts.tokens,
        record=facts.record.hex(),
        materialised=facts.materialised,
    )


def _peers(state: NodeState) -> list[inspect_pb2.Peer]:
    newest: dict[bytes, int] = {}
    validators = state.consensus.replica.validators.keys
    for member, (contiguous, bitmap) in state.model.book.summary().items():
        newest[member] = contiguous + int.from_bytes(bitmap, "little").bit_length()
    opinions, ledger = state.detection.opinions(), state.consensus.replica.ledger
    peers = []
    for peer in sorted({*state.links.peers, *opinions}):
        record = state.links.peers.get(peer) or PeerRecord(
            address=ledger.members[peer].address if peer in ledger.members else ""
        )
        found = inspect_pb2.Peer(
            node_id=peer.hex(),
            address=record.address,
            state=record.state,
            round_trip_ms=record.round_trip_ms,
            sent_bytes=record.sent_bytes,
            received_bytes=record.received_bytes,
            last_sequence=newest.get(peer, 0),
            validator=peer in validators,
            last_error=record.last_error,
            committed_height=record.committed_height,
            pending_deltas=state.model.book.pending_of(peer),
            strikes=state.strikes.of(peer),
        )
        if peer in opinions:
            _add_opinion(found, opinions[peer])
        peers.append(found)
    return peers


def _add_opinion(peer: inspect_pb2.Peer, opinion: Opinion) -> None:
    peer.liveness = str(opinion.state)
    peer.why = why(opinion)
    peer.heard_seconds = -1.0 if opinion.heard_s is None else opinion.heard_s
    peer.silent_seconds = opinion.silent_s
    peer.deadline_ms = opinion.deadline_s * 1000
    peer.timeout_seconds = opinion.timeout_s
    peer.accusers.extend(accuser.hex() for accuser in opinion.accusers)
    peer.incarnation = opinion.incarnation
