"""`shoal verify`: is this directory the checkpoint that a mesh certified? Asks nobody.

The chain of proof, each link checked against the one before it:

    mesh id  >  genesis.json  >  validators of epoch 0  >  epochs.bin: each set signs the next
    >  certificate.bin: a quorum of the last set signs operation.bin
    >  its record: Merkle root, settled state, deltas, and a second quorum's attestation
    >  manifest.bin  >  every chunk  >  model.safetensors, or that of adapters, value for value

A second implementation, independent of the node's (verify_formats.py says why). Every check has a
reason word of its own; docs/verify.md lists them.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from struct import Struct
from typing import Any

from shoal.node.errors import UserError
from shoal.node.verify_adapters import Adapters
from shoal.node.verify_content import (
    Steps,
    Tell,
    check_deltas,
    check_manifest,
    check_model_files,
    check_nothing_else,
    check_settled,
    check_weights,
    signed,
)
from shoal.node.verify_formats import (
    ATTEST,
    CERTIFICATE_BYTES_MAX,
    COMMIT,
    GENESIS_BYTES_MAX,
    OPERATION_BYTES_MAX,
    STABLE,
    UNTRUSTED,
    Certificate,
    Epoch,
    Fields,
    Genesis,
    Record,
    Refused,
    genesis_epoch,
    hash_of,
    mesh_id_of,
    parse_certificate,
    parse_genesis,
    parse_links,
    parse_operation,
    read_file,
)
from shoal.node.verify_parameters import Parameters, density, parameters_after

_VOTE = Struct(">10sB32sQQQ32s")
NOT_PROVED = (
    "that the weights are good: no signature rules out a backdoor learned from poisoned data",
    "that this is the newest checkpoint, or that fewer than a third of the validators lied",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was proved about a directory. `named`: the caller said which mesh it must be."""

    directory: Path
    mesh_id: bytes
    named: bool
    record: Record
    epoch: Epoch
    in_force: Parameters
    changed: tuple[str, ...]
    signers: tuple[bytes, ...]
    attested_by: tuple[bytes, ...]
    parameters: int
    chunks: int
    deltas_here: bool
    weights_name: str
    adapters: Adapters | None

    @property
    def tolerated(self) -> int:
        """How many validators of the epoch may lie without this proof being false."""
        return (len(self.epoch.validators) - 1) // 3

    def to_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "proved": True,
            "mesh": self.mesh_id.hex(),
            "mesh_named": self.named,
            "height": self.record.height,
            "round": self.record.round,
            "epoch": self.epoch.number,
            "root": self.record.anchor_root.hex(),
            "record": self.record.digest.hex(),
            "mesh_parameters": dict(self.in_force),
            "validators": len(self.epoch.validators),
            "quorum": quorum(len(self.epoch.validators)),
            "tolerated": self.tolerated,
            "signers": [key.hex() for key in self.signers],
            "attested_by": [key.hex() for key in self.attested_by],
            "parameters": self.parameters,
            "chunks": self.chunks,
            "deltas": len(self.record.cut),
            "deltas_here": self.deltas_here,
            "base": self._base(),
            "not_trusted": [UNTRUSTED],
            "not_proved": list(NOT_PROVED),
        }

    def lines(self) -> list[str]:
        """What a person should know, one fact a line."""
        n = len(self.epoch.validators)
        trust = "which you named" if self.named else "taken from the directory: compare it"
        since = "those of the genesis" if not self.epoch.number else "each set signed the next"
        deltas = "all here, signed" if self.deltas_here else "not here, so it cannot be audited"
        return [
            f"proved     {self.directory} is a certified checkpoint",
            f"mesh       {self.mesh_id.hex()} ({trust})",
            f"height     {self.record.height}, round {self.record.round}",
            f"epoch      {self.epoch.number}: {n} validators, {since}",
            f"in force   {self._parameters()}",
            f"root       {self.record.anchor_root.hex()}",
            f"signed     {len(self.signers)} of {n}, {quorum(n)} needed, {self.tolerated} may lie",
            *(f"             {key.hex()}" for key in self.signers),
            f"attested   {len(self.attested_by)} of {n} recomputed the root before it was ordered",
            f"model      {self.parameters:,} parameters in {self.chunks} chunks; "
            f"{self.weights_name} is that anchor, value for value",
            *(f"base       {name} has SHA-256 {digest}" for name, digest in self._base().items()),
            f"deltas     {len(self.record.cut)} in the cut: {deltas}",
            *(f"not proved {what}" for what in NOT_PROVED),
            f"not read   {UNTRUSTED}: trust nothing in it",
        ]

    def _base(self) -> dict[str, str]:
        """What the adapters are for, which does not lie here: SHA-256 of its files."""
        if self.adapters is None:
            return {}
        files = self.adapters.base_files.items()
        return {f"{self.adapters.base}/{name}": digest.hex() for name, digest in files}

    def _parameters(self) -> str:
        if not self.changed:
            return "the mesh parameters of the genesis"
        values = ", ".join(f"{name} {self.in_force[name]}" for name in self.changed)
        return f"{values} by decision of the validators, else as in the genesis"


def quorum(validators: int) -> int:
    """The smallest number such that two sets of it share an honest validator."""
    return (validators + (validators - 1) // 3 + 2) // 2


def trusted_mesh(text: str) -> bytes:
    """The mesh id that `--trust` names: 64 hexadecimal digits, or a genesis.json to be hashed.

    Raises UserError when it is neither.
    """
    try:
        named = bytes.fromhex(text)
    except ValueError:
        named = b""
    if len(named) == 32:
        return named
    path = Path(text)
    if not path.is_file() or path.stat().st_size > GENESIS_BYTES_MAX:
        raise UserError(f"--trust {text}: neither a mesh id (64 hexadecimal digits) nor a genesis")
    return mesh_id_of(path.read_bytes())


def verify_checkpoint(
    directory: Path,
    trust: bytes | None = None,
    *,
    deltas: bool = True,
    tell: Tell = lambda what, done, of: None,
) -> Proof:
    """Check everything in a checkpoint directory.

    trust: the mesh id that it must be of; without it the one in the directory is believed, and
    the caller should compare it. deltas: whether deltas.bin is checked as well. tell:
    hears what is being checked.

    Raises Refused, whose `reason` names the check that failed; UserError where there is no
    checkpoint to check.
    """
    _require_a_checkpoint(directory)
    tell("checking signatures", 0, 0)
    genesis = _check_genesis(directory, trust)
    epoch, in_force = _check_epochs(directory, genesis)
    commit, record = _check_operation(directory, genesis, epoch)
    kept = density(in_force, record[0].members)
    if record[0].kept_per_chunk != kept:
        raise Refused(
            "record-density",
            f"its deltas keep {record[0].kept_per_chunk} values, "
            f"the budget of {in_force['budget']} with {record[0].members} members pays for {kept}",
        )
    if not in_force["trust"] and record[0].trust != {1000}:
        raise Refused("record-trust", "it trusts members unequally, and the mesh decided not to")
    attestation = record[1]
    addresses = check_manifest(directory, genesis, record[0])
    check_settled(directory, record[0])
    check_model_files(directory, genesis)
    check_nothing_else(directory, genesis)
    tell("checking deltas", 0, 0)
    told = check_deltas(directory, genesis, record[0]) if deltas else None
    _check_steps(record[0], in_force, told)
    check_weights(directory, genesis, record[0], addresses, tell)
    return Proof(
        directory=directory,
        mesh_id=genesis.mesh_id,
        named=trust is not None,
        record=record[0],
        epoch=epoch,
        in_force=in_force,
        changed=tuple(k for k, value in in_force.items() if value != genesis.parameters[k]),
        signers=tuple(epoch.validators[signer] for signer in commit.signers),
        attested_by=tuple(epoch.validators[signer] for signer in attestation.signers),
        parameters=genesis.total,
        chunks=len(addresses),
        deltas_here=told is not None,
        weights_name=genesis.weights_name,
        adapters=genesis.adapters,
    )


def _require_a_checkpoint(directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; name one of a node's checkpoints/HEIGHT")
    names = set(os.listdir(directory))
    if "anchor.bin" in names and "manifest.bin" not in names:
        raise UserError(
            f"{directory} is in the format of an older Shoal (anchor.bin), which does not hold "
            "its proof; take a checkpoint that a newer node wrote"
        )
    if not names & {"certificate.bin", "operation.bin", "manifest.bin"}:
        raise UserError(f"{directory} holds no checkpoint; name one of a node's checkpoints/HEIGHT")


def _check_genesis(directory: Path, trust: bytes | None) -> Genesis:
    document = read_file(directory, "genesis.json", GENESIS_BYTES_MAX)
    found = mesh_id_of(document)
    if trust is not None and found != trust:
        raise Refused(
            "wrong-mesh", f"genesis.json begins mesh {found.hex()}, you trust {trust.hex()}"
        )
    return parse_genesis(document)


def _check_epochs(directory: Path, genesis: Genesis) -> tuple[Epoch, Parameters]:
    """The epoch at the end of the chain, every change signed by the set before it, and the mesh
    parameters in force in it."""
    epoch, in_force = genesis_epoch(genesis.mesh_id, genesis.validators), genesis.parameters
    for link in parse_links(directory):
        new = link.epoch
        if new.number != epoch.number + 1:
            raise Refused("epoch-order", f"epoch {new.number} follows epoch {epoch.number}")
        if link.mesh_id != genesis.mesh_id:
            raise Refused("epoch-mesh", f"epoch {new.number} is of another mesh")
        if link.parent != epoch.digest:
            raise Refused("epoch-parent", f"epoch {new.number} does not follow from the one here")
        if new.start <= epoch.start:
            raise Refused("epoch-start", f"epoch {new.number} begins before the one it follows")
        _require_certificate(
            link.certificate,
            f"epoch {new.number}",
            "epoch",
            mesh_id=genesis.mesh_id,
            epoch=epoch,
            kind=STABLE,
            view=0,
            sequence=new.start,
            digest=hash_of(b"SHOAL-LEDGER\x02", new.digest + link.ledger_body_digest),
        )
        epoch = new
        in_force = parameters_after(in_force, new.parameters, genesis.parameters)
    return epoch, in_force


def _check_operation(
    directory: Path, genesis: Genesis, epoch: Epoch
) -> tuple[Certificate, tuple[Record, Certificate]]:
    """The commit certificate, and the operation's record and attestation."""
    fields = Fields(read_file(directory, "certificate.bin", CERTIFICATE_BYTES_MAX), "certificate")
    commit = parse_certificate(fields)
    fields.end()
    operation = read_file(directory, "operation.bin", OPERATION_BYTES_MAX)
    _require_certificate(
        commit,
        "the commit certificate",
        "commit",
        mesh_id=genesis.mesh_id,
        epoch=epoch,
        kind=COMMIT,
        view=commit.view,
        sequence=max(commit.sequence, epoch.start + 1),
        digest=hash_of(b"SHOAL-OPERATION\x01", operation),
    )
    record, attestation = parse_operation(operation)
    _check_record(directory, genesis, epoch, record)
    _require_certificate(
        attestation,
        "the attestation",
        "attestation",
        mesh_id=genesis.mesh_id,
        epoch=epoch,
        kind=ATTEST,
        view=record.attempt,
        sequence=record.height,
        digest=record.digest,
    )
    return commit, (record, attestation)


def _check_record(directory: Path, genesis: Genesis, epoch: Epoch, record: Record) -> None:
    name = directory.resolve().name
    if record.height < 1 or (name.isdecimal() and name.isascii() and int(name) != record.height):
        raise Refused("record-height", f"it is checkpoint {record.height}, the directory is {name}")
    if int.from_bytes(record.parameters[:8], "big") != record.height:
        raise Refused("record-parameters", "its parameters are those of another height")
    if record.mesh_id != genesis.mesh_id:
        raise Refused("record-mesh", "it is a checkpoint of another mesh")
    if record.height == 1 and record.parent != genesis.mesh_id:
        raise Refused("record-parent", "the first checkpoint does not follow from the genesis")
    turn = (record.height + record.attempt) % len(epoch.validators)
    if record.proposer != epoch.validators[turn]:
        raise Refused("record-proposer", "it was not that validator's turn to propose")


def _check_steps(record: Record, in_force: Parameters, told: Steps | None) -> None:
    """Whether the usual steps follow from the cut, of whose deltas `told` says the steps."""
    if not in_force["normalise_steps"] or not record.cut:
        wrong = record.steps != 0 and not in_force["normalise_steps"]
    elif told is None:
        wrong = record.steps == 0
    else:
        own: dict[bytes, list[int]] = {}
        for member, steps in told:
            own.setdefault(member, []).append(steps)
        means = [max(1, sum(each) // len(each)) for each in own.values()]
        middle = median_low(means) << 32
        total = sum(min(max(middle // mean, 1 << 30), 4 << 32) for mean in means)
        due = (2 * len(means) * middle + total) // (2 * total)
        wrong = record.steps != min(max(1, due), 2**32 - 1)
    if wrong:
        raise Refused("record-steps", f"{record.steps} steps of a delta do not follow from its cut")


def _require_certificate(
    certificate: Certificate,
    what: str,
    reason: str,
    *,
    mesh_id: bytes,
    epoch: Epoch,
    kind: int,
    view: int,
    sequence: int,
    digest: bytes,
) -> None:
    """Raise Refused unless a quorum of the epoch's validators signed exactly this vote."""
    n = len(epoch.validators)
    if certificate.kind != kind:
        raise Refused(f"{reason}-kind", f"{what} is a certificate of another kind")
    if certificate.epoch != epoch.number:
        raise Refused(
            f"{reason}-epoch",
            f"{what} is signed in epoch {certificate.epoch}, the chain ends in {epoch.number}",
        )
    if certificate.digest != digest:
        raise Refused(f"{reason}-subject", f"{what} is about something else than what lies here")
    if (certificate.view, certificate.sequence) != (view, sequence):
        raise Refused(f"{reason}-position", f"{what} is for another place in the order")
    if any(signer >= n for signer in certificate.signers):
        raise Refused(f"{reason}-signer", f"{what} names a signer that is no validator")
    if len(certificate.signers) < quorum(n):
        have = len(certificate.signers)
        raise Refused(f"{reason}-quorum", f"{what} has {have} signatures, {quorum(n)} are needed")
    vote = _VOTE.pack(
        b"SHOAL-BFT\x01", kind, mesh_id, epoch.number, certificate.view, sequence, digest
    )
    for signer, signature in zip(certificate.signers, certificate.signatures, strict=True):
        if not signed(epoch.validators[signer], vote, signature):
            who = epoch.validators[signer].hex()[:8]
            raise Refused(f"{reason}-signature", f"{what} has a signature that is not {who}'s")
