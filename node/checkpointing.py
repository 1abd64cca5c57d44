"""From a set of deltas to a certified checkpoint: the node's side of what consensus decides.

Consensus executes an operation the moment it is committed; the anchor follows here, one height at
a time, because it may first have to pull deltas. The certificate fixes what must come out: where
the recomputed root differs, this node's state is wrong and it fetches the certified one whole.
"""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from shoal.compression.frame import FrameError
from shoal.consensus.effects import Decided, Propose, Restored
from shoal.consensus.epochs import EpochChain
from shoal.consensus.ledger import Executed, Ledger
from shoal.consensus.records import Checkpoint, CheckpointRecord, CutEntry, parse_operation
from shoal.gossip.alignment import FULL_PERMILLE
from shoal.gossip.delta import DeltaReference
from shoal.gossip.errors import GossipError
from shoal.gossip.parameters import EpochParameters
from shoal.node import bulk
from shoal.node.certified import (
    Certified,
    Certifier,
    certified,
    check_state,
    write_checkpoint,
)
from shoal.node.checkpoints import CheckpointStore
from shoal.node.cut_times import CutTimes
from shoal.node.database import Database
from shoal.node.fetch import fetch_checkpoint
from shoal.node.genesis import Genesis
from shoal.node.gossip_driver import GossipDriver
from shoal.node.identity import short
from shoal.node.links import Links
from shoal.node.meters import Meters
from shoal.node.outcome import Coming, Outcome
from shoal.node.parameters import MeshParameters
from shoal.node.pieces import assemble
from shoal.node.run_rows import CheckpointDone, Row
from shoal.node.shared_model import MissingDeltas, SharedModel, Unsaid

log = structlog.get_logger()

# How long a validator tries to get a candidate's deltas before it calls the candidate wrong.
OBTAIN_TIMEOUT_S = 20.0
RETRY_S = 1.0
# A cut takes at most so many times the rounds that make one due. When the mesh could not commit
# for a while, a cut of everything would take longer to check than a proposer has, and the next
# one longer still; in slices it catches up.
CUT_ROUNDS = 4
APPLIED = "applied"


class Checkpointer:
    """Proposes, checks, applies, keeps and fetches checkpoints."""

    def __init__(
        self,
        *,
        me: bytes,
        genesis: Genesis,
        certifier: Certifier,
        mesh: Callable[[], MeshParameters],
        epochs: Callable[[], EpochChain],
        model: SharedModel,
        gossip: GossipDriver,
        links: Links,
        meters: Meters,
        database: Database,
        store: CheckpointStore,
        tokenizer: Mapping[str, bytes],
        ledger: Callable[[], Ledger],
        on_certified: Callable[[Certified, bool], None],
        on_unsaid: Callable[[list[Unsaid]], Awaitable[None]],
        tell: Callable[[Row], None],
    ) -> None:
        self._me = me
        self._genesis = genesis
        self._certifier = certifier
        self._mesh = mesh
        self._epochs = epochs
        self._model = model
        self._gossip = gossip
        self._links = links
        self._meters = meters
        self._database = database
        self._store = store
        self._tokenizer = tokenizer
        self._ledger = ledger
        self._on_certified = on_certified
        self._on_unsaid = on_unsaid
        self._tell = tell
        self._times = CutTimes()
        self._target = 0
        self._wake = asyncio.Event()

    # --- what consensus asks --------------------------------------------------------------------

    async def propose(self, wish: Propose) -> CheckpointRecord | None:
        """Build the record of everything that is pending here."""
        while True:
            mesh = self._mesh()
            with self._times.during(wish.height, "propose"):
                record = await self._propose(wish, mesh)
            # An epoch that begins while this is worked out may bring other parameters.
            if mesh == self._mesh():
                return record

    async def _propose(self, wish: Propose, mesh: MeshParameters) -> CheckpointRecord | None:
        if self._model.height != wish.height - 1:
            return None
        coming = self._coming(mesh)
        members = max(1, len(coming.members))
        rounds = CUT_ROUNDS * mesh.worked_out(members).rounds_per_checkpoint
        cut = self._model.book.cut(limit=rounds * members)
        try:
            outcome = await self._model.outcome(cut, coming)
            if outcome.out_of_range:
                # A cut of nothing keeps heights moving, so that what went too far expires.
                log.error(
                    "candidate.out-of-range",
                    height=wish.height,
                    deltas=len(cut),
                    why="a weight would leave the range of the anchor's integers; where this goes "
                    "on, begin a new mesh from the newest checkpoint",
                )
                cut = ()
                outcome = await self._model.outcome(cut, coming)
        except (MissingDeltas, GossipError, FrameError) as error:
            log.warning("candidate.failed", height=wish.height, why=str(error))
            return None
        return CheckpointRecord(
            mesh_id=self._genesis.mesh_id,
            height=wish.height,
            parent=wish.parent,
            round=max((entry.sequence for entry in cut), default=0),
            proposer=self._me,
            attempt=wish.attempt,
            anchor_root=outcome.root,
            cut=tuple(CutEntry(*entry) for entry in cut),
            parameters=outcome.parameters.to_bytes() + outcome.settled.digest,
        )

    async def check(self, record: CheckpointRecord) -> bool:
        """Recompute a candidate; whether root, parameters and settled state are equal.

        The answer counts in the epoch that it is given in, so it is of that epoch's parameters.
        """
        while True:
            mesh = self._mesh()
            with self._times.during(record.height, "check"):
                equal = await self._check(record, mesh)
            if mesh == self._mesh():
                return equal

    async def _check(self, record: CheckpointRecord, mesh: MeshParameters) -> bool:
        cut = [DeltaReference(e.member, e.sequence, e.delta_id) for e in record.cut]
        try:
            async with asyncio.timeout(OBTAIN_TIMEOUT_S):
                while self._model.height < record.height - 1:
                    await self._model.wait_for_change()
            if self._model.height != record.height - 1:
                return False
            outcome = await self._obtain_outcome(cut, self._coming(mesh), record.proposer)
        except (TimeoutError, MissingDeltas, GossipError, FrameError) as error:
            log.warning("candidate.unchecked", height=record.height, why=str(error))
            return False
        equal = (
            outcome.root == record.anchor_root
            and outcome.parameters.to_bytes() + outcome.settled.digest == record.parameters
            and not outcome.out_of_range
        )
        if not equal:
            log.warning("candidate.wrong", height=record.height, proposer=short(record.proposer))
        return equal

    async def _obtain_outcome(
        self, cut: list[DeltaReference], basis: Coming | EpochParameters, peer: bytes
    ) -> Outcome:
        try:
            return await self._model.outcome(cut, basis)
        except MissingDeltas as error:
            if not await self._gossip.obtain(error.missing, peer, OBTAIN_TIMEOUT_S):
                raise
        return await self._model.outcome(cut, basis)

    def _coming(self, mesh: MeshParameters) -> Coming:
        members = [
            (member, known.shard_tokens, known.share_permille)
            for member, known in sorted(self._ledger().members.items())
        ]
        kept = mesh.kept_per_chunk(len(members))
        return Coming(members, mesh.clip_factor, kept, mesh.normalise_steps, mesh.trust)

    def submitted(self, operation: bytes) -> None:
        """The search for a cut ended here: a quorum has attested what this node proposed."""
        parsed = parse_operation(operation)
        if isinstance(parsed, Checkpoint):
            self._times.until_now(parsed.record.height, "attest")

    # --- what consensus says --------------------------------------------------------------------

    async def decided(self, decided: Decided) -> None:
        """Keep what was decided; the anchor follows in `run`."""
        operation = decided.operation
        if isinstance(operation, Checkpoint) and isinstance(decided.result, Executed):
            record = operation.record
            self._times.until_now(record.height, "order")
            certificate = decided.certificate.to_bytes()
            await self._database.put_cut(record.height, decided.operation_bytes, certificate)
            self._on_certified(
                Certified(record, decided.operation_bytes, decided.certificate), False
            )
            self.follow(record.height)
        # Not awaited: what comes between this and the next transaction is told once more.
        self._database.note(APPLIED, decided.sequence.to_bytes(8, "big"))

    async def restored(self, restored: Restored) -> None:
        """The ledger jumped; so must the anchor."""
        self.follow(restored.ledger.height)
        sequence = restored.ledger.sequence.to_bytes(8, "big")
        await self._database.put_meta(APPLIED, sequence)

    def follow(self, height: int) -> None:
        """Bring the anchor to this committed height."""
        self._target = max(self._target, height)
        self._wake.set()

    # --- the anchor follows ---------------------------------------------------------------------

    async def run(self) -> None:
        """Bring the anchor to each committed height, for ever."""
        while True:
            if self._model.height >= self._target:
                self._wake.clear()
                await self._wake.wait()
                continue
            if not await self._advance():
                await asyncio.sleep(RETRY_S)

    async def _advance(self) -> bool:
        height = self._model.height + 1
        kept = await self._database.cuts(height, height)
        if not kept:
            return await self._fetch_newest()
        found = certified(kept[0][1], kept[0][2], self._epochs())
        try:
            outcome = await self._obtain_outcome(found.cut, found.parameters, found.record.proposer)
        except (MissingDeltas, GossipError, FrameError) as error:
            log.warning("checkpoint.not-rebuilt", height=height, why=str(error))
            return await self._fetch_newest()
        if (
            outcome.root != found.record.anchor_root
            or outcome.settled.digest != found.settled_digest
        ):
            log.error("checkpoint.diverged", height=height)
            return await self._fetch_newest()
        before = self._model.parameters.trusted
        unsaid = await self._model.commit(found.cut, outcome)
        _tell_of_trust(before, outcome.parameters.trusted)
        await self._keep(found, outcome)
        await self._on_unsaid(unsaid)
        await self._model.after_commit()
        return True

    async def _keep(self, found: Certified, outcome: Outcome) -> None:
        deltas = [await self._database.get_delta(*reference) for reference in found.cut]
        await asyncio.to_thread(
            write_checkpoint,
            self._store,
            found,
            outcome,
            self._genesis,
            self._tokenizer,
            self._epochs(),
            deltas,
        )
        self._on_certified(found, True)
        log.info(
            "checkpoint.committed",
            height=found.height,
            round=found.record.round,
            deltas=len(found.record.cut),
            root=outcome.root.hex()[:16],
            signatures=len(found.certificate.signers),
        )
        self._times.until_now(found.height, "commit")
        self._tell(self._row(found, sum(len(blob) for blob in deltas if blob is not None)))

    def _row(self, found: Certified, delta_bytes: int) -> CheckpointDone:
        keys = self._epochs().validators(found.certificate.epoch).keys
        return CheckpointDone(
            time_s=time.time(),
            height=found.height,
            round=found.record.round,
            root=found.record.anchor_root.hex(),
            signers=[keys[signer].hex()[:16] for signer in found.certificate.signers],
            view=found.certificate.view,
            deltas=len(found.record.cut),
            delta_bytes=delta_bytes,
            tokens=found.parameters.tokens,
            stages=self._times.take(found.height),
        )

    async def _fetch_newest(self) -> bool:
        """Fetch the newest certified checkpoint that any neighbour has, from all that have it."""
        try:
            part = await fetch_checkpoint(
                mesh_id=self._genesis.mesh_id,
                holders={short(peer): self._links.stub(peer) for peer in self._links.connected},
                certify=self._certifier.check,
                directory=self._store.directory,
                anchor_bytes=4 * self._genesis.schema.layout.total,
                above=self._model.height,
                meters=self._meters,
            )
        except bulk.FetchFailed as error:
            log.info("checkpoint.fetch-failed", why=str(error))
            return False
        if part is None:
            return False
        described, data = await asyncio.to_thread(assemble, part)
        found = self._certifier.check(described)
        outcome = await self._model.compute(
            lambda: check_state(found, described.settled, data, self._genesis)
        )
        await self._model.adopt(outcome.anchor, outcome.settled)
        await self._keep(found, outcome)
        await asyncio.to_thread(shutil.rmtree, part.path, ignore_errors=True)
        await self._model.after_commit()
        log.info("checkpoint.fetched", height=found.height)
        return True


def _tell_of_trust(before: Mapping[bytes, int], after: Mapping[bytes, int]) -> None:
    """Who goes against the others may be a liar, or have text like nobody else's: say so."""
    for member, permille in after.items():
        if permille < before.get(member, FULL_PERMILLE):
            log.warning("member.distrusted", member=short(member), trust=permille / FULL_PERMILLE)
