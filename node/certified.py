"""Certified checkpoints: what a quorum signed, and whether something is that.

Nothing is believed because of who sent it. An operation counts with its certificate, a
certificate with the chain of epochs that leads from the genesis to its signers, a state with the
digests and roots in the record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

from shoal.consensus.certificate import Certificate, parse_certificate, verify_certificate
from shoal.consensus.epochs import EpochChain, build_chain, parse_link, split_links
from shoal.consensus.errors import ConsensusError
from shoal.consensus.records import (
    Checkpoint,
    CheckpointRecord,
    operation_digest,
    parse_operation,
)
from shoal.consensus.validators import STABILITY_INTERVAL
from shoal.consensus.votes import VoteKind
from shoal.gossip.chunks import root_of_chunks
from shoal.gossip.delta import DeltaReference
from shoal.gossip.errors import GossipError
from shoal.gossip.parameters import EpochParameters
from shoal.gossip.settled import SettledState
from shoal.node.bulk_wire import Description
from shoal.node.checkpoints import CheckpointFiles, CheckpointStore
from shoal.node.errors import PeerError
from shoal.node.genesis import Genesis, anchor_from_bytes, anchor_to_bytes
from shoal.node.identity import verify
from shoal.node.outcome import Outcome

DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Certified:
    """A committed checkpoint operation that has been checked against its certificate."""

    record: CheckpointRecord
    operation: bytes
    certificate: Certificate

    @property
    def height(self) -> int:
        """The checkpoint's height."""
        return self.record.height

    @property
    def parameters(self) -> EpochParameters:
        """What is in force from this height on."""
        return EpochParameters.from_bytes(self.record.parameters[:-DIGEST_BYTES])

    @property
    def settled_digest(self) -> bytes:
        """The digest of the settled state as of this height."""
        return self.record.parameters[-DIGEST_BYTES:]

    @property
    def cut(self) -> list[DeltaReference]:
        """The deltas that are in."""
        return [DeltaReference(e.member, e.sequence, e.delta_id) for e in self.record.cut]


def certified(operation: bytes, certificate: bytes, epochs: EpochChain) -> Certified:
    """Check a committed checkpoint from anywhere; raises ConsensusError, GossipError.

    The certificate counts by the validators of the epoch that it names, which must be proved.
    """
    proof = parse_certificate(certificate)
    if proof.kind is not VoteKind.COMMIT or proof.digest != operation_digest(operation):
        raise ConsensusError("bad-certificate", "it is not about this operation")
    verify_certificate(proof, epochs.validators(proof.epoch), verify)
    parsed = parse_operation(operation)
    if not isinstance(parsed, Checkpoint):
        raise ConsensusError("not-a-checkpoint")
    found = Certified(parsed.record, operation, proof)
    if found.parameters.height != found.height:
        raise GossipError("bad-parameters", "they are of another height")
    return found


def _require_settled(found: Certified, settled: bytes) -> SettledState:
    """Return the settled state; raises GossipError, or PeerError where it is another one."""
    state = SettledState.from_bytes(settled)
    if state.digest != found.settled_digest or state.height != found.height:
        raise PeerError("checkpoint-settled", "it is not what was certified")
    return state


class Certifier:
    """Checks what strangers say a checkpoint is. For any thread.

    Many describe one checkpoint, and every later one repeats the chain of epochs: what was checked
    of it once is not checked again.
    """

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self._chain = EpochChain(genesis.first_epoch(), STABILITY_INTERVAL)
        self._lock = Lock()

    def check(self, described: Description) -> Certified:
        """Check everything about a checkpoint but its anchor, of which the addresses.

        Raises ConsensusError, GossipError or PeerError.
        """
        links = split_links(described.epochs)
        found = certified(described.operation, described.certificate, self._epochs(links))
        if found.certificate.epoch != len(links):
            # Whoever is given these links later knows no others.
            raise ConsensusError("unknown-epoch", f"{len(links)} links to it")
        if found.height != described.height:
            raise PeerError("checkpoint-height", "its operation is of another height")
        if described.anchor_bytes != 4 * self._genesis.schema.layout.total:
            raise PeerError("anchor-size", f"{described.anchor_bytes} bytes")
        root = root_of_chunks(self._genesis.schema, described.addresses)
        if root != found.record.anchor_root:
            raise PeerError("checkpoint-root", "its chunks are not those of the certified anchor")
        _require_settled(found, described.settled)
        return found

    def epochs(self, described: Description) -> EpochChain:
        """The chain that a description brings, and perhaps more; raises ConsensusError."""
        return self._epochs(split_links(described.epochs))

    def _epochs(self, links: Sequence[bytes]) -> EpochChain:
        with self._lock:
            known = self._chain.links(len(links))
            if tuple(links[: len(known)]) != known:
                # Other signatures under the same epochs: it has to stand on its own.
                first = self._genesis.first_epoch()
                return build_chain(links, first, STABILITY_INTERVAL, verify)
            for data in links[len(known) :]:
                link = parse_link(data)
                self._chain.check(link, verify)
                self._chain.append(link)
            return self._chain


def check_state(found: Certified, settled: bytes, anchor: bytes, genesis: Genesis) -> Outcome:
    """Check a checkpoint's state from anywhere against its certificate.

    Raises GossipError or PeerError when it is not the state that was certified.
    """
    state = _require_settled(found, settled)
    values = anchor_from_bytes(genesis.schema, anchor)
    root = values.root()
    if root != found.record.anchor_root:
        raise PeerError("checkpoint-root", "its anchor is not the certified one")
    return Outcome(values, root, found.parameters, state, out_of_range=False)


def write_checkpoint(
    store: CheckpointStore,
    found: Certified,
    outcome: Outcome,
    genesis: Genesis,
    tokenizer: Mapping[str, bytes],
    epochs: EpochChain,
    deltas: Sequence[bytes | None] | None = None,
) -> None:
    """Put a checked checkpoint on the disk, with the blobs of its cut where all are here.

    checkpoint.json says whether they are.
    """
    keys = epochs.validators(found.certificate.epoch).keys
    whole = [blob for blob in deltas or () if blob is not None]
    complete = deltas is not None and len(whole) == len(found.record.cut)
    store.write(
        CheckpointFiles(
            height=found.height,
            operation=found.operation,
            certificate=found.certificate.to_bytes(),
            settled=outcome.settled.to_bytes(),
            anchor=anchor_to_bytes(outcome.anchor),
            links=epochs.links(found.certificate.epoch),
        ),
        outcome.anchor,
        genesis=genesis.document,
        deltas=whole if complete else None,
        model_config=genesis.model_config,
        adapter_config=genesis.adapter_config,
        tokenizer=tokenizer,
        facts={
            "mesh_id": genesis.mesh_id.hex(),
            "height": found.height,
            "round": found.record.round,
            "root": found.record.anchor_root.hex(),
            "record": found.record.digest.hex(),
            "epoch": found.certificate.epoch,
            "view": found.certificate.view,
            "signatures": len(found.certificate.signers),
            "signers": [keys[signer].hex() for signer in found.certificate.signers],
            "deltas": len(found.record.cut),
            "deltas_kept": complete,
            "tokens": found.parameters.tokens,
            "alpha": found.parameters.alpha,
        },
    )
