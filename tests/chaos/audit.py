"""python -m tests.chaos.audit DIR... : did anybody sign two things, did any two nodes decide apart?

Reads what the nodes of these directories captured ([consensus] capture = true) and nothing that
their replicas concluded. Every vote counts wherever it stands: sent on its own, inside a
certificate, inside a VIEW-CHANGE, inside the NEW-VIEW that repeats it. A signature that does not
verify is nobody's vote, so that a liar cannot accuse others; it is only counted.

Exits with 1 when a validator signed two digests for one (kind, epoch, view, sequence), or two
VIEW-CHANGEs or NEW-VIEWs for one view; when two digests were decided for one sequence; or when
a decision has no valid certificate.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.consensus.certificate import Certificate, parse_certificate
from shoal.consensus.epochs import EpochChain, EpochLink
from shoal.consensus.errors import ConsensusError
from shoal.consensus.messages import (
    NEW_VIEW_DOMAIN,
    VIEW_CHANGE_DOMAIN,
    Candidate,
    CommitProof,
    Epochs,
    Message,
    NewView,
    PrePrepare,
    Request,
    Stability,
    ViewChange,
    decode,
    sealed_bytes,
)
from shoal.consensus.records import Checkpoint, parse_operation
from shoal.consensus.validators import STABILITY_INTERVAL
from shoal.consensus.votes import Vote, VoteKind, vote_bytes
from shoal.node.capture import Captured, Direction, captures_of, read_capture, read_decision
from shoal.node.genesis import Genesis, parse_document
from shoal.node.identity import verify

# (signer's key, what kind of statement, epoch, view, sequence): who signs this twice lies.
Question = tuple[bytes, str, int, int, int]


@dataclass(frozen=True)
class Electorate:
    """Who may vote: the mesh and, by epoch, the keys in the order of their index."""

    mesh_id: bytes
    keys: dict[int, tuple[bytes, ...]]

    def key(self, epoch: int, index: int) -> bytes | None:
        """The key of a signer, None where the epoch or the index is not known."""
        keys = self.keys.get(epoch, ())
        return keys[index] if index < len(keys) else None

    def quorum(self, epoch: int) -> int | None:
        """ceil((n + f + 1) / 2) with f = floor((n - 1) / 3); None for an epoch not known."""
        n = len(self.keys.get(epoch, ()))
        return (n + (n - 1) // 3 + 2) // 2 if n else None


@dataclass
class Findings:
    """What an audit has seen so far."""

    records: int = 0
    unreadable: int = 0
    forged: int = 0
    unknown_epochs: set[int] = field(default_factory=set)
    decisions: int = 0
    certificates: int = 0
    statements: dict[Question, set[bytes]] = field(default_factory=dict)
    decided: dict[int, set[bytes]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def double_votes(self) -> list[Question]:
        """Questions that somebody answered twice, differently."""
        return sorted(asked for asked, given in self.statements.items() if len(given) > 1)

    @property
    def diverging(self) -> list[int]:
        """Sequences at which two digests were decided."""
        return sorted(sequence for sequence, digests in self.decided.items() if len(digests) > 1)

    def summary(self) -> dict[str, Any]:
        """Everything as plain values, for a report."""
        kinds: dict[str, int] = {}
        for _, kind, *_ in self.statements:
            kinds[kind] = kinds.get(kind, 0) + 1
        return {
            "records": self.records,
            "votes": sum(map(len, self.statements.values())),
            "votes_by_kind": dict(sorted(kinds.items())),
            "double_votes": len(self.double_votes),
            "sequences_decided": len(self.decided),
            "diverging_decisions": len(self.diverging),
            "decisions": self.decisions,
            "certificates_checked": self.certificates,
            "forged_signatures": self.forged,
            "unreadable_messages": self.unreadable,
            "problems": self.all_problems(),
        }

    def all_problems(self) -> list[str]:
        """One line for each thing that must not be."""
        lines = [
            f"double vote: {key.hex()[:8]} signed two {kind} in epoch {epoch}, view {view}, "
            f"at sequence {sequence}"
            for key, kind, epoch, view, sequence in self.double_votes
        ]
        lines += [f"diverging: two operations were decided at {s}" for s in self.diverging]
        lines += [f"nobody can tell who votes in epoch {e}" for e in sorted(self.unknown_epochs)]
        return lines + self.problems


class Auditor:
    """Takes captured records in any order, from any number of nodes."""

    def __init__(self, electorate: Electorate) -> None:
        self.findings = Findings()
        self._electorate = electorate
        # Retransmission shows most messages many times; each is looked at once.
        self._seen: set[bytes] = set()
        self._checked: dict[tuple[bytes, bytes, bytes], bool] = {}

    def add(self, record: Captured, where: str) -> None:
        """Look at one record of the node that is called `where`."""
        self.findings.records += 1
        if record.direction is Direction.DECIDED:
            self._decision(record.data, where)
        elif (digest := hashlib.sha256(record.data).digest()) not in self._seen:
            self._seen.add(digest)
            try:
                self._message(decode(record.data))
            except ConsensusError:
                self.findings.unreadable += 1

    def _decision(self, data: bytes, where: str) -> None:
        findings = self.findings
        findings.decisions += 1
        decision = read_decision(data)
        findings.decided.setdefault(decision.sequence, set()).add(decision.digest)
        try:
            proof = parse_certificate(decision.certificate)
        except ConsensusError as error:
            findings.problems.append(f"{where}: no certificate at {decision.sequence}: {error}")
            return
        claim = (VoteKind.COMMIT, decision.epoch, decision.sequence, decision.digest)
        if (proof.kind, proof.epoch, proof.sequence, proof.digest) != claim:
            findings.problems.append(
                f"{where}: the certificate at {decision.sequence} is of something else"
            )
        elif not self._certificate(proof):
            findings.problems.append(
                f"{where}: the certificate at {decision.sequence} proves nothing"
            )

    def _message(self, message: Message) -> None:
        match message:
            case Vote():
                self._vote(message)
            case PrePrepare(vote, operation):
                self._vote(vote)
                self._operation(operation)
            case Candidate(vote, _):
                self._vote(vote)
            case ViewChange():
                self._view_change(message)
            case NewView():
                self._new_view(message)
            case CommitProof(operation, certificate):
                self._operation(operation)
                self._certificate(certificate)
            case Stability(certificate, _):
                self._certificate(certificate)
            case Request(operation):
                self._operation(operation)
            case Epochs(links, ready):
                for link in links:
                    self._certificate(link.certificate)
                if ready is not None:
                    self._certificate(ready)

    def _operation(self, data: bytes) -> None:
        operation = parse_operation(data)
        if isinstance(operation, Checkpoint):
            self._certificate(operation.attestation)

    def _view_change(self, change: ViewChange) -> None:
        self._sealed("VIEW_CHANGE", VIEW_CHANGE_DOMAIN, change)
        for certificate in change.prepared:
            self._certificate(certificate)
        if change.stability is not None:
            self._certificate(change.stability)

    def _new_view(self, message: NewView) -> None:
        self._sealed("NEW_VIEW", NEW_VIEW_DOMAIN, message)
        for change in message.view_changes:
            self._view_change(change)
        # Its proposals are PRE-PREPAREs for the slots above the highest stability point.
        start = max((change.low for change in message.view_changes), default=0)
        for sequence, (digest, signature) in enumerate(message.proposals, start + 1):
            kind, epoch, view = VoteKind.PRE_PREPARE, message.epoch, message.view
            self._vote(Vote(kind, epoch, view, sequence, digest, message.signer, signature))

    def _sealed(self, kind: str, domain: bytes, message: ViewChange | NewView) -> None:
        body = message.body()
        signed = sealed_bytes(domain, self._electorate.mesh_id, body)
        key = self._signer(message.epoch, message.signer, signed, message.signature)
        if key is not None:
            self._remember((key, kind, message.epoch, message.view, 0), body)

    def _vote(self, vote: Vote) -> bool:
        """Count one vote; whether it is really its signer's."""
        signed = vote_bytes(
            vote.kind,
            mesh_id=self._electorate.mesh_id,
            epoch=vote.epoch,
            view=vote.view,
            sequence=vote.sequence,
            digest=vote.digest,
        )
        key = self._signer(vote.epoch, vote.signer, signed, vote.signature)
        if key is not None:
            asked = (key, vote.kind.name, vote.epoch, vote.view, vote.sequence)
            self._remember(asked, vote.digest)
        return key is not None

    def _certificate(self, certificate: Certificate) -> bool:
        """Count the votes of a certificate; whether a quorum really signed it."""
        self.findings.certificates += 1
        valid = 0
        for index, signature in zip(certificate.signers, certificate.signatures, strict=True):
            epoch, view, sequence = certificate.epoch, certificate.view, certificate.sequence
            vote = Vote(
                certificate.kind, epoch, view, sequence, certificate.digest, index, signature
            )
            if certificate.kind is VoteKind.PREPARE and not self._is_signed(vote):
                # One of them is the primary's, whose PRE-PREPARE stands for its PREPARE.
                vote = Vote(
                    VoteKind.PRE_PREPARE, epoch, view, sequence, vote.digest, index, signature
                )
            valid += self._vote(vote)
        distinct = len(set(certificate.signers)) == len(certificate.signers)
        quorum = self._electorate.quorum(certificate.epoch)
        proven = distinct and quorum is not None and valid >= quorum
        if proven and certificate.kind is VoteKind.COMMIT:
            decided = self.findings.decided
            decided.setdefault(certificate.sequence, set()).add(certificate.digest)
        return proven

    def _is_signed(self, vote: Vote) -> bool:
        key = self._electorate.key(vote.epoch, vote.signer)
        signed = vote.signed_bytes(self._electorate.mesh_id)
        return key is not None and self._verified(key, signed, vote.signature)

    def _signer(self, epoch: int, index: int, signed: bytes, signature: bytes) -> bytes | None:
        """The key that made the signature, None when it is not the one that it claims."""
        key = self._electorate.key(epoch, index)
        if epoch not in self._electorate.keys:
            self.findings.unknown_epochs.add(epoch)
        elif key is not None and self._verified(key, signed, signature):
            return key
        else:
            self.findings.forged += 1
        return None

    def _verified(self, key: bytes, signed: bytes, signature: bytes) -> bool:
        question = (key, signed, signature)
        if question not in self._checked:
            self._checked[question] = verify(key, signed, signature)
        return self._checked[question]

    def _remember(self, asked: Question, answer: bytes) -> None:
        self.findings.statements.setdefault(asked, set()).add(answer)


def electorate_of(genesis: Genesis, directories: Iterable[Path]) -> Electorate:
    """Who votes in which epoch, as far as the captured proofs lead from the genesis."""
    links: dict[int, EpochLink] = {}
    for path in (path for directory in directories for path in captures_of(directory)):
        for record in read_capture(path):
            with suppress(ConsensusError):
                message = decode(record.data) if record.direction is not Direction.DECIDED else None
                if isinstance(message, Epochs):
                    links |= {link.record.number: link for link in message.links}
    chain = EpochChain(genesis.first_epoch(), STABILITY_INTERVAL)
    with suppress(ConsensusError):
        while (link := links.get(chain.last + 1)) is not None:
            chain.check(link, verify)
            chain.append(link)
    keys = {number: chain.validators(number).keys for number in range(chain.last + 1)}
    return Electorate(genesis.mesh_id, keys)


def audit(directories: Iterable[Path]) -> Findings:
    """Audit the captures of these nodes together; raises ValueError where there are none."""
    directories = list(directories)
    documents = {(path / "genesis" / "genesis.json").read_bytes() for path in directories}
    if len(documents) != 1:
        raise ValueError("name the directories of one mesh")
    genesis = parse_document(documents.pop())
    auditor = Auditor(electorate_of(genesis, directories))
    for directory in directories:
        paths = captures_of(directory)
        if not paths:
            raise ValueError(f"{directory}: nothing was captured; set [consensus] capture = true")
        for path in paths:
            for record in read_capture(path):
                auditor.add(record, f"{directory.name}, boot {path.stem}")
    return auditor.findings


def main() -> int:
    """Print what was found as JSON and each problem as a line; 1 when there is one."""
    parser = argparse.ArgumentParser(prog="tests.chaos.audit", description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    try:
        findings = audit(parser.parse_args().directories)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(findings.summary(), indent=2))
    for line in findings.all_problems():
        print(line, file=sys.stderr)
    return 1 if findings.all_problems() else 0


if __name__ == "__main__":
    sys.exit(main())
