"""Checkpoint directories as a mesh would certify them, made without running one.

Real Ed25519 keys sign everything, so a test can play any validator, and any forger.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.consensus.certificate import Certificate
from shoal.consensus.fields import blob, u8, u64
from shoal.consensus.quorum import quorum
from shoal.consensus.records import (
    Checkpoint,
    CheckpointRecord,
    CutEntry,
    operation_bytes,
    operation_digest,
)
from shoal.consensus.validators import STABILITY_INTERVAL
from shoal.consensus.votes import VoteKind, vote_bytes
from shoal.gossip.anchor import Anchor
from shoal.gossip.delta import Delta, make_delta
from shoal.gossip.parameters import EpochParameters
from shoal.gossip.schema import ModelSchema, TensorSchema
from shoal.gossip.settled import SettledState
from shoal.node.checkpoints import CheckpointFiles, CheckpointStore
from shoal.node.errors import DAMAGED
from shoal.node.genesis import Founder, Genesis, anchor_to_bytes, make_document, parse_document
from shoal.node.parameters import MeshParameters
from shoal.node.verify import verify_checkpoint
from shoal.node.verify_formats import Refused
from shoal.training.adapters import Lora

# Three chunks of the anchor; tensors whose order in the flat vector is not that of their names,
# with edges inside chunks and two scales.
SCHEMA = ModelSchema(
    (
        TensorSchema("wte.weight", (500, 700), 28),
        TensorSchema("norm.weight", (700,), 24),
        TensorSchema("blocks.0.weight", (350, 700), 28),
        TensorSchema("scale", (), 24),
    )
)
MODEL = {"model_type": "llama", "hidden_size": 700, "rope_theta": 10000.0}
TOKENIZER = {"tokenizer.json": b'{"model": "bytes"}', "tokenizer_config.json": b"{}"}


@dataclass(frozen=True)
class Key:
    """A validator: its id and its private key."""

    id: bytes
    private: Ed25519PrivateKey

    @classmethod
    def of(cls, label: str) -> "Key":
        private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(label.encode()).digest())
        return cls(private.public_key().public_bytes_raw(), private)


def keys(labels: str) -> tuple[Key, ...]:
    """One key a letter, in the order of the validators' numbers."""
    return tuple(sorted((Key.of(label) for label in labels), key=lambda key: key.id))


def epoch_digest(record: bytes) -> bytes:
    return hashlib.sha256(b"SHOAL-EPOCH\x01" + record).digest()


# How long each epoch of these certificates lasts: a multiple of K.
EPOCH_SEQUENCES = 2 * STABILITY_INTERVAL


class CertifiedMesh:
    """A mesh with its validators' keys; `sets`: who votes in epoch 0, 1, ..., a letter each."""

    def __init__(
        self,
        *sets: str,
        name: str = "the mesh",
        parameters: bytes = b"parameters",
        model: Mapping[str, object] = MODEL,
        lora: Lora | None = None,
        anchor: Anchor | None = None,
        tokenizer: Mapping[str, bytes] = TOKENIZER,
        height: int = 5,
        steps: int = 0,
        trust: int = 1000,
    ) -> None:
        """parameters: what the record of each epoch but the first says of the mesh's; lora: what
        the schema is of, if not of a whole model; steps, trust: the usual steps and what each is
        believed, as the record says."""
        self.steps, self.trust = steps, trust
        self.parameters = parameters
        self.sets = tuple(keys(labels) for labels in sets)
        self.height = height
        random = np.random.default_rng(7)
        values = random.integers(-(2**30), 2**30, SCHEMA.layout.total, dtype=np.int32)
        self.anchor = anchor or Anchor(SCHEMA, torch.from_numpy(values))
        self.tokenizer = tokenizer
        founders = tuple(Founder(key.id, "127.0.0.1:1", 1000, 1000) for key in self.sets[0])
        document = make_document(
            name=name,
            schema=self.anchor.schema,
            model_config=model,
            parameters=MeshParameters(staleness=0),
            founders=founders,
            anchor_root=bytes(32),
            tokenizer_files=tokenizer,
            lora=lora,
        )
        self.genesis: Genesis = parse_document(document)
        self.mesh_id = self.genesis.mesh_id

    @property
    def epoch(self) -> int:
        return len(self.sets) - 1

    # --- epochs ---------------------------------------------------------------------------------

    def epoch_record(self, number: int, *, parent: bytes | None = None, start: int = -1) -> bytes:
        if parent is None:
            parent = epoch_digest(self.epoch_record(number - 1)) if number else self.mesh_id
        start = EPOCH_SEQUENCES * number if start < 0 else start
        voters = self.sets[number]
        ids = b"".join(key.id for key in voters)
        fields = (self.mesh_id, u64(number), parent, u64(start), u8(len(voters)), ids)
        return b"".join(fields) + blob(self.parameters if number else b"")

    def link(
        self,
        number: int,
        *,
        record: bytes | None = None,
        voters: Sequence[Key] | None = None,
        **changes: object,
    ) -> bytes:
        """The bytes of an epoch link, signed by the epoch before it unless `voters` are given."""
        record = self.epoch_record(number) if record is None else record
        body = hashlib.sha256(b"a ledger").digest()
        certificate = self.certificate(
            VoteKind.STABLE,
            epoch=number - 1,
            view=0,
            sequence=int.from_bytes(record[72:80], "big"),
            digest=hashlib.sha256(b"SHOAL-LEDGER\x02" + epoch_digest(record) + body).digest(),
            voters=self.sets[number - 1] if voters is None else voters,
        )
        return record + body + replace(certificate, **changes).to_bytes()  # type: ignore[arg-type]

    @cached_property
    def links(self) -> tuple[bytes, ...]:
        return tuple(self.link(number) for number in range(1, len(self.sets)))

    # --- votes ----------------------------------------------------------------------------------

    def certificate(
        self,
        kind: VoteKind,
        *,
        epoch: int,
        view: int,
        sequence: int,
        digest: bytes,
        voters: Sequence[Key],
        signers: Sequence[int] | None = None,
    ) -> Certificate:
        if signers is None:
            # The last ones, so that validator 0 is not always among them.
            signers = range(len(voters) - quorum(len(voters)), len(voters))
        message = vote_bytes(
            kind, mesh_id=self.mesh_id, epoch=epoch, view=view, sequence=sequence, digest=digest
        )
        signatures = tuple(voters[signer].private.sign(message) for signer in signers)
        return Certificate(kind, epoch, view, sequence, digest, tuple(signers), signatures)

    def attestation(self, record: CheckpointRecord, **how: object) -> Certificate:
        given: dict[str, object] = {
            "kind": VoteKind.ATTEST,
            "epoch": self.epoch,
            "view": record.attempt,
            "sequence": record.height,
            "digest": record.digest,
            "voters": self.sets[-1],
            **how,
        }
        return self.certificate(**given)  # type: ignore[arg-type]

    def commit(self, operation: bytes, **how: object) -> Certificate:
        given: dict[str, object] = {
            "epoch": self.epoch,
            "view": 2,
            "sequence": EPOCH_SEQUENCES * self.epoch + 3,
            "digest": operation_digest(operation),
            "voters": self.sets[-1],
            **how,
        }
        return self.certificate(VoteKind.COMMIT, **given)  # type: ignore[arg-type]

    # --- the checkpoint -------------------------------------------------------------------------

    @cached_property
    def deltas(self) -> tuple[Delta, ...]:
        """Four signed deltas in the order of the cut; their frames are no more than bytes."""
        return tuple(
            make_delta(
                f"frame {number} ".encode() * 50,
                mesh_id=self.mesh_id,
                sender=key.id,
                sequence=number,
                height=self.height - 1,
                steps=2,
                tokens=100,
                sign=key.private.sign,
            )
            for key in self.sets[0][:2]
            for number in (3, 4)
        )

    @cached_property
    def settled(self) -> bytes:
        weights = tuple((key.id, 1 / len(self.sets[0])) for key in self.sets[0])
        clip = (1.0,) * len(self.anchor.schema.tensors)
        kept = self.genesis.epoch_parameters().kept_per_chunk
        parameters = EpochParameters(
            self.height, 1.0, weights, clip, kept, 400, (self.trust,) * len(weights), self.steps
        )
        return SettledState(self.height, 0, (parameters,), (), ()).to_bytes()

    @cached_property
    def record(self) -> CheckpointRecord:
        state = SettledState.from_bytes(self.settled)
        voters, attempt = self.sets[-1], 1
        return CheckpointRecord(
            mesh_id=self.mesh_id,
            height=self.height,
            parent=hashlib.sha256(b"the record before").digest(),
            round=4,
            proposer=voters[(self.height + attempt) % len(voters)].id,
            attempt=attempt,
            anchor_root=self.anchor.root(),
            cut=tuple(CutEntry(*delta.header.reference) for delta in self.deltas),
            parameters=state.epochs[0].to_bytes() + state.digest,
        )

    @cached_property
    def operation(self) -> bytes:
        return operation_bytes(Checkpoint(self.record, self.attestation(self.record)))

    def write(self, directory: Path) -> Path:
        """Write the checkpoint as a node does; returns checkpoints/<height>."""
        directory.mkdir(parents=True, exist_ok=True)
        store = CheckpointStore(directory / "checkpoints")
        store.write(
            CheckpointFiles(
                height=self.height,
                operation=self.operation,
                certificate=self.commit(self.operation).to_bytes(),
                settled=self.settled,
                anchor=anchor_to_bytes(self.anchor),
                links=self.links,
            ),
            self.anchor,
            genesis=self.genesis.document,
            deltas=[delta.to_bytes() for delta in self.deltas],
            model_config=self.genesis.model_config,
            tokenizer=self.tokenizer,
            facts={"height": self.height},
            adapter_config=self.genesis.adapter_config,
        )
        return store.path(self.height)

    def recommit(self, directory: Path, record: CheckpointRecord, **attested: object) -> None:
        """Replace the operation by one that the same validators really attested and committed."""
        operation = operation_bytes(Checkpoint(record, self.attestation(record, **attested)))
        (directory / "operation.bin").write_bytes(operation)
        (directory / "certificate.bin").write_bytes(self.commit(operation).to_bytes())


def as_list(items: Sequence[bytes]) -> bytes:
    """The bytes of epochs.bin or deltas.bin."""
    return len(items).to_bytes(4, "big") + b"".join(blob(item) for item in items)


# Four found it, a fifth is let in, one of the founders leaves.
MESHES = {0: CertifiedMesh("ABCD"), 2: CertifiedMesh("ABCD", "ABCDE", "BCDE")}
MESH = MESHES[2]


def refusal(directory: Path, trust: bytes | None = MESH.mesh_id) -> Refused:
    """Why verify refuses this directory, which it must."""
    with pytest.raises(Refused) as caught:
        verify_checkpoint(directory, trust)
    line = str(caught.value)
    assert caught.value.exit_code == DAMAGED
    assert line.startswith(f"{caught.value.reason}: ") and "\n" not in line
    return caught.value
