"""Attestor: "attest, then order" (consensus.md 2.2, ADR 0002).

Whether a checkpoint is right is found out before PBFT sees it. A proposer, chosen by rotation,
announces a candidate record; each validator fetches what it lacks, recomputes the root and the
parameters, and signs an attestation; Q of those make the operation that is then ordered. So no
bulk data and no computation sits inside PBFT's timers, and the certificate proves that at least
f + 1 honest validators computed this very root.

A dead or idle proposer only costs time. Attempts move on by local deadlines that double once
everybody had a turn; validators attest any attempt that they can check, whatever attempt they
are in themselves, so their clocks need not agree. Two attempts of one height may both gather Q:
the first that PBFT orders counts and the other executes to `Rejected`.

One attestation per (height, attempt), durable before it is sent. Lost messages are repeated by
the proposer; a validator that has attested answers a repeated candidate with the same bytes.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from shoal.consensus.certificate import certify
from shoal.consensus.effects import (
    AttestorEvent,
    Broadcast,
    CandidateReady,
    Check,
    Checked,
    Committed,
    CutDue,
    Effect,
    EpochStarted,
    Evidence,
    Propose,
    Received,
    Send,
    Started,
    Submit,
    TimerFired,
)
from shoal.consensus.errors import ConsensusError
from shoal.consensus.evidence import evidence_of_votes
from shoal.consensus.messages import Candidate, decode, encode
from shoal.consensus.outbox import Outbox
from shoal.consensus.records import Checkpoint, CheckpointRecord, operation_bytes, parse_record
from shoal.consensus.safety import SafetyRules
from shoal.consensus.validators import Sign, Validators, Verifier, Verify
from shoal.consensus.votes import Vote, VoteKind, require_signature

PREFIX = "attestor/"
MAX_DOUBLINGS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestorConfig:
    """`validators` are those of the first epoch it is told of. Times in milliseconds."""

    validators: Validators
    me: bytes
    # How long one proposer has: to build, and for a quorum to fetch what it lacks and check.
    attempt_ms: int = 10_000
    # How often an unfinished candidate is announced again.
    resend_ms: int = 1_000


class Attestor:
    """One validator's part in certifying candidates, for one height at a time."""

    # Why the event of the last step was refused; None where it was not.
    refusal: str | None = None

    def __init__(
        self,
        config: AttestorConfig,
        rows: Mapping[str, bytes],
        *,
        sign: Sign,
        verify: Verify,
    ) -> None:
        """`rows` is everything ever persisted ({} for a first start); foreign keys are ignored."""
        self.config = config
        self.refused: Counter[str] = Counter()
        self._sign = sign
        self._outbox = Outbox()
        self._vote_in(config.validators, verify)
        self._safety.restore(rows)
        self._now_ms = 0
        # The last committed checkpoint; the height in hand is the next one.
        self._height = 0
        self._parent = config.validators.mesh_id
        self._attempt: int | None = None
        # Ours, by (height, attempt): records announced, attestations for them, what they became.
        self._own: dict[tuple[int, int], CheckpointRecord] = {}
        self._attestations: dict[int, dict[int, Vote]] = {}
        self._certified: bytes | None = None
        # Others': the first candidate of each attempt, those that the node is checking, and
        # those that it found wrong.
        self._seen: dict[int, Candidate] = {}
        self._checking: dict[bytes, CheckpointRecord] = {}
        self._wrong: set[bytes] = set()
        start = self._candidate_row("")
        for key, value in sorted(rows.items()):
            if key.startswith(start):
                record = parse_record(value)
                self._own[record.height, record.attempt] = record

    def _vote_in(self, validators: Validators, verify: Verify) -> None:
        """Become one of this epoch's attestors; where we do not vote, only watch (index -1)."""
        index = validators.index(self.config.me)
        self._me = -1 if index is None else index
        self._validators = validators
        self._verifier = Verifier(validators, verify)
        self._safety = SafetyRules(
            sign=self._sign,
            validators=validators,
            me=self._me,
            prefix=PREFIX,
            persist=self._outbox.persist,
        )

    def step(self, now_ms: int, event: AttestorEvent) -> list[Effect]:
        """Carry the effects out in order: a Persist must be durable before the next one starts."""
        self._now_ms = now_ms
        self.refusal = None
        try:
            self._dispatch(event)
        except ConsensusError as error:
            self.refused[error.reason] += 1
            self.refusal = error.reason
        return self._outbox.drain()

    def _candidate_row(self, name: object) -> str:
        return f"{PREFIX}candidate/{self._validators.epoch}/{name}"

    def _dispatch(self, event: AttestorEvent) -> None:
        match event:
            case Received(_, data):
                message = decode(data)
                if isinstance(message, Candidate):
                    self._on_candidate(message)
                elif isinstance(message, Vote) and message.kind is VoteKind.ATTEST:
                    self._on_attestation(message)
                else:
                    raise ConsensusError("not-for-attestors")
            case TimerFired(name):
                if self._outbox.expired(name, self._now_ms):
                    self._on_timer(name)
            case CutDue(height):
                if self._me >= 0 and height == self._height + 1 and self._attempt is None:
                    self._begin(0)
            case CandidateReady(record):
                self._on_candidate_ready(record)
            case Checked(digest, ok):
                self._on_checked(digest, ok)
            case Committed(height, digest):
                self._on_committed(height, digest)
            case EpochStarted(validators):
                self._on_epoch(validators)
            case Started():
                pass

    def _begin(self, attempt: int) -> None:
        """Give this attempt's proposer its time; if it is us, propose."""
        height = self._height + 1
        self._attempt = attempt
        doublings = min(attempt // self._validators.n, MAX_DOUBLINGS)
        self._outbox.set_timer("attempt", self._now_ms + (self.config.attempt_ms << doublings))
        if self._validators.proposer(height, attempt) != self._me:
            return
        if (height, attempt) in self._own:
            self._announce(self._own[height, attempt])
        else:
            self._outbox.add(Propose(height, attempt, self._parent))

    def _on_timer(self, name: str) -> None:
        if name == "attempt" and self._attempt is not None:
            self._begin(self._attempt + 1)
        elif name == "resend":
            self._resend()

    def _resend(self) -> None:
        """Announce again what has not gathered Q; submit again what is not committed yet."""
        if self._certified is not None:
            self._outbox.add(Submit(self._certified))
        else:
            for (height, _), record in sorted(self._own.items()):
                if height == self._height + 1:
                    self._broadcast_candidate(record)
        self._outbox.set_timer("resend", self._now_ms + self.config.resend_ms)

    def _on_candidate_ready(self, record: CheckpointRecord) -> None:
        key = (record.height, record.attempt)
        if record.height != self._height + 1 or key in self._own:
            return
        if self._validators.proposer(*key) != self._me:
            # Asked for in an epoch that has ended meanwhile.
            return
        assert record.parent == self._parent, "a candidate builds on the last checkpoint"
        assert record.proposer == self.config.me, "a candidate is its proposer's"
        self._own[key] = record
        self._outbox.persist(self._candidate_row(f"{key[0]}/{key[1]}"), record.to_bytes())
        self._announce(record)

    def _announce(self, record: CheckpointRecord) -> None:
        """Send the candidate out and attest it ourselves: we have just computed it."""
        self._broadcast_candidate(record)
        self._outbox.set_timer("resend", self._now_ms + self.config.resend_ms)
        self._count(self._vote(VoteKind.ATTEST, record))

    def _broadcast_candidate(self, record: CheckpointRecord) -> None:
        vote = self._vote(VoteKind.CANDIDATE, record)
        self._outbox.add(Broadcast(encode(Candidate(vote, record))))

    def _vote(self, kind: VoteKind, record: CheckpointRecord) -> Vote:
        return self._safety.vote(
            kind, view=record.attempt, sequence=record.height, digest=record.digest
        )

    def _on_candidate(self, candidate: Candidate) -> None:
        vote, record = candidate.vote, candidate.record
        if self._me < 0:
            raise ConsensusError("not-a-validator")
        self._require_candidate(candidate)
        known = self._seen.setdefault(record.attempt, candidate)
        if known.vote.digest != vote.digest:
            key = self._validators.keys[vote.signer]
            self._outbox.add(
                Evidence("candidate-equivocation", key, encode(known), encode(candidate))
            )
            eviction = evidence_of_votes(known.vote, vote, key)
            self._outbox.add(Submit(operation_bytes(eviction)))
            raise ConsensusError("equivocation")
        if self._attempt is None:
            self._begin(record.attempt)
        attested = self._safety.recall(VoteKind.ATTEST, view=record.attempt, sequence=record.height)
        if attested is not None:
            self._outbox.add(Send(record.proposer, encode(attested)))
        elif vote.digest not in self._checking and vote.digest not in self._wrong:
            self._checking[vote.digest] = record
            self._outbox.add(Check(record))

    def _require_candidate(self, candidate: Candidate) -> None:
        """Everything about a candidate that needs no bulk data; raises ConsensusError."""
        vote, record = candidate.vote, candidate.record
        if record.mesh_id != self._validators.mesh_id:
            raise ConsensusError("wrong-mesh")
        if record.height != self._height + 1 or record.parent != self._parent:
            raise ConsensusError("other-height", str(record.height))
        if record.attempt > (self._attempt or 0) + 2 * self._validators.n:
            raise ConsensusError("attempt-too-far", str(record.attempt))
        signer = self._validators.proposer(record.height, record.attempt)
        if vote.signer != signer or record.proposer != self._validators.keys[signer]:
            raise ConsensusError("wrong-proposer")
        if (vote.sequence, vote.view) != (record.height, record.attempt):
            raise ConsensusError("header-differs")
        if vote.digest != record.digest:
            raise ConsensusError("digest-mismatch")
        if vote.signer == self._me:
            raise ConsensusError("our-own-candidate")
        require_signature(vote, self._verifier)

    def _on_checked(self, digest: bytes, ok: bool) -> None:
        record = self._checking.pop(digest, None)
        if record is None:
            return
        if not ok:
            self._wrong.add(digest)
            return
        self._outbox.add(Send(record.proposer, encode(self._vote(VoteKind.ATTEST, record))))

    def _on_attestation(self, vote: Vote) -> None:
        record = self._own.get((vote.sequence, vote.view))
        if record is None or record.height != self._height + 1:
            raise ConsensusError("not-our-candidate")
        if vote.digest != record.digest:
            raise ConsensusError("digest-mismatch")
        require_signature(vote, self._verifier)
        self._count(vote)

    def _count(self, vote: Vote) -> None:
        votes = self._attestations.setdefault(vote.view, {})
        votes[vote.signer] = vote
        if self._certified is not None or len(votes) < self._validators.quorum:
            return
        certificate = certify(VoteKind.ATTEST, votes.values())
        record = self._own[vote.sequence, vote.view]
        self._certified = operation_bytes(Checkpoint(record, certificate))
        self._outbox.add(Submit(self._certified))

    def _on_committed(self, height: int, digest: bytes) -> None:
        """This height is settled, whoever's record it was: forget it and wait for the next cut."""
        if height <= self._height:
            return
        self._height, self._parent = height, digest
        self._start_over(height)
        self._safety.forget(height)

    def _on_epoch(self, validators: Validators) -> None:
        """What the old set attested is worth nothing in the new one: begin this height again."""
        if validators == self._validators:
            return
        self._start_over(2**64)
        self._safety.retire()
        self._vote_in(validators, self._verifier.verify)

    def _start_over(self, height: int) -> None:
        """Forget the height in hand, and the own candidates up to this one."""
        self._attempt = None
        self._attestations, self._certified = {}, None
        self._seen, self._checking, self._wrong = {}, {}, set()
        self._outbox.cancel_timer("attempt")
        self._outbox.cancel_timer("resend")
        for key in [key for key in self._own if key[0] <= height]:
            del self._own[key]
            self._outbox.persist(self._candidate_row(f"{key[0]}/{key[1]}"), None)
