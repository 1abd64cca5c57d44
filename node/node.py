"""One node's parts, wired together: who hears of what.

links ──► gossip driver ──► shared model ◄── round loop ◄── training process
  └─────► consensus driver ◄──► checkpointer ──► checkpoints on disk
"""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import structlog

from shoal.consensus.attest import Attestor, AttestorConfig
from shoal.consensus.ledger import Ledger, Member
from shoal.consensus.records import Join, operation_bytes
from shoal.consensus.replica import Replica
from shoal.consensus.state import Config
from shoal.consensus.validators import Validators
from shoal.gossip.delta import Delta
from shoal.gossip.topology import neighbours
from shoal.node.capture import open_capture
from shoal.node.checkpointing import APPLIED, Certified, Checkpointer, certified
from shoal.node.checkpoints import CheckpointStore
from shoal.node.config import Settings
from shoal.node.consensus_driver import ConsensusDriver, Duties
from shoal.node.database import Database
from shoal.node.errors import PeerError
from shoal.node.genesis import Genesis
from shoal.node.gossip_driver import GossipDriver, relay_settings
from shoal.node.identity import Identity, verify
from shoal.node.join import ask_to_join
from shoal.node.links import Links
from shoal.node.meters import LoopLag, Meters
from shoal.node.round import RoundLoop
from shoal.node.shared_model import SharedModel, Unsaid
from shoal.node.status import (
    CHECKPOINTS_SHOWN,
    CheckpointFacts,
    NodeState,
    StatusReply,
    status_reply,
)
from shoal.node.trainer import TrainerProcess, TrainingFailed
from shoal.node.wire import (
    Announced,
    CheckpointParts,
    ConsensusMessage,
    GenesisParts,
    LinkMessage,
    SummaryMessage,
)

log = structlog.get_logger()

DUE_INTERVAL_S = 0.2
# When nothing new has come for so long, what is pending is worth a cut of its own.
QUIET_S = 4.0
JOIN_INTERVAL_S = 3.0
DIAL_INTERVAL_S = 2.0


class Node:
    """Everything of one running node but its listener and its signals."""

    def __init__(
        self,
        *,
        settings: Settings,
        identity: Identity,
        genesis: Genesis,
        tokenizer: dict[str, bytes],
        model: SharedModel,
        database: Database,
        rows: dict[str, bytes],
        sequence: int,
    ) -> None:
        self.mesh_id = genesis.mesh_id
        self._settings = settings
        self._identity = identity
        self._genesis = genesis
        self._tokenizer = tokenizer
        self._model = model
        self._database = database
        self._sequence = sequence
        self._meters = Meters()
        self._lag = LoopLag()
        self._store = CheckpointStore(settings.node.directory / "checkpoints")
        self._validators = Validators(genesis.mesh_id, 0, genesis.validators)
        self.links = Links(
            identity=identity,
            mesh_id=genesis.mesh_id,
            address=settings.node.advertised,
            meters=self._meters,
            is_member=lambda peer: peer in self._consensus.replica.ledger.members,
            on_up=lambda peer: self._gossip.link_up(peer),
            on_down=lambda peer: self._gossip.link_down(peer),
            on_message=self._on_message,
        )
        self._gossip = GossipDriver(
            model=model,
            links=self.links,
            meters=self._meters,
            settings=relay_settings(settings.gossip),
        )
        self._checkpointer = self._make_checkpointer()
        self._consensus = self._make_consensus(rows)
        self._trainer: TrainerProcess | None = None
        self._rounds: RoundLoop | None = None
        self._evaluating = False
        self.state = NodeState(
            settings=settings,
            genesis=genesis,
            node_id=identity.node_id,
            meters=self._meters,
            lag=self._lag,
            links=self.links,
            model=model,
            consensus=self._consensus,
            gossip=self._gossip,
        )

    @property
    def meters(self) -> Meters:
        """The node's counters."""
        return self._meters

    def _make_checkpointer(self) -> Checkpointer:
        return Checkpointer(
            me=self._identity.node_id,
            genesis=self._genesis,
            validators=self._validators,
            model=self._model,
            gossip=self._gossip,
            links=self.links,
            meters=self._meters,
            database=self._database,
            store=self._store,
            tokenizer=self._tokenizer,
            ledger=lambda: self._consensus.replica.ledger,
            on_certified=self._on_certified,
            on_unsaid=self._on_unsaid,
        )

    def _make_consensus(self, rows: dict[str, bytes]) -> ConsensusDriver:
        me, sign = self._identity.node_id, self._identity.sign
        settings = self._settings.consensus
        founders = [
            (f.node_id, Member(f.address, f.shard_tokens, f.share_permille))
            for f in self._genesis.founders
        ]
        replica = Replica.restore(
            Config(
                validators=self._validators,
                me=me,
                timeout_ms=int(settings.base_timeout_s * 1000),
            ),
            Ledger.genesis(self.mesh_id, founders),
            rows,
            sign=sign,
            verify=verify,
        )
        attestor = None
        if me in self._validators.keys:
            config = AttestorConfig(
                validators=self._validators,
                me=me,
                attempt_ms=int(settings.candidate_timeout_s * 1000),
            )
            attestor = Attestor(config, rows, sign=sign, verify=verify)
        checkpointer = self._checkpointer
        return ConsensusDriver(
            replica=replica,
            attestor=attestor,
            database=self._database,
            links=self.links,
            meters=self._meters,
            validators=self._validators.keys,
            me=me,
            duties=Duties(
                decided=checkpointer.decided,
                restored=checkpointer.restored,
                propose=checkpointer.propose,
                check=checkpointer.check,
            ),
            capture=open_capture(self._settings, self._database.boots),
        )

    # --- running --------------------------------------------------------------------------------

    async def run(self, trainer: TrainerProcess | None) -> None:
        """Work until cancelled. Raises UserError where training cannot start; any other exception
        is our fault and ends the node."""
        applied = await self._database.get_meta(APPLIED)
        height = self._model.height
        shown = await self._database.cuts(height - CHECKPOINTS_SHOWN + 1, height)
        for _, operation, certificate in shown:
            found = certified(operation, certificate, self._validators)
            self._on_certified(found, True)
        self._checkpointer.follow(self._consensus.replica.ledger.height)
        self._consensus.start(int.from_bytes(applied, "big") if applied else 0)
        works: list[Coroutine[Any, Any, None]] = [
            self._lag.run(),
            self._gossip.run(),
            self._consensus.run(),
            self._checkpointer.run(),
            self._watch_for_cuts(),
            self._keep_dialling(),
            self._take_part(trainer),
        ]
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)

    async def stop(self) -> None:
        """End links, timers and training."""
        self._consensus.close()
        await self.links.close()
        if self._trainer is not None:
            await self._trainer.stop()

    async def _take_part(self, trainer: TrainerProcess | None) -> None:
        """Join and train, once it is known how much text there is to train on."""
        async with asyncio.TaskGroup() as group:
            if trainer is not None:
                await trainer.started()
                self.state.device = str(trainer.ready["device"])
                self.state.shard_tokens = int(trainer.ready["shard_tokens"])
                group.create_task(self._train(trainer))
            group.create_task(self._keep_asking_to_join())

    async def _train(self, trainer: TrainerProcess) -> None:
        self._trainer = trainer
        self._rounds = RoundLoop(
            identity=self._identity,
            model=self._model,
            trainer=trainer,
            mesh=self._genesis.parameters,
            step_tokens=self._settings.train.batch * self._settings.train.sequence,
            max_rounds=self._settings.train.max_rounds,
            sequence=self._sequence,
            publish=self._publish,
        )
        self.state.facts = self._rounds.facts
        try:
            await self._rounds.run()
        except TrainingFailed as error:
            # The node goes on relaying and voting: its shard is missing, its vote is not.
            self._rounds.facts.state = f"failed: {error}"
            log.error("training.failed", why=str(error))

    async def _publish(self, delta: Delta) -> None:
        await self._model.add(delta, own=True)

    async def _watch_for_cuts(self) -> None:
        """Tell the attestor when it is time for a checkpoint."""
        loop = asyncio.get_running_loop()
        pending, since = 0, loop.time()
        while True:
            await asyncio.sleep(DUE_INTERVAL_S)
            count = len(self._model.book.pending())
            if count != pending:
                pending, since = count, loop.time()
            due = self._model.book.due(
                self._validators.keys,
                quorum=self._validators.quorum,
                rounds_per_checkpoint=self._genesis.parameters.rounds_per_checkpoint,
            )
            quiet_s = max(QUIET_S, 4 * self.state.facts.round_seconds)
            due = due or (pending > 0 and loop.time() - since > quiet_s)
            if due and self._model.height == self._consensus.replica.ledger.height:
                self._consensus.cut_due(self._model.height + 1)

    async def _keep_dialling(self) -> None:
        """Keep links to the neighbours that the member list gives, and to all validators."""
        me = self._identity.node_id
        while True:
            members = self._consensus.replica.ledger.members
            wanted = set(neighbours(members, me, self.mesh_id, self._settings.gossip.degree)) | set(
                self._validators.keys
            )
            targets: dict[str, bytes | None] = {
                members[peer].address: peer for peer in sorted(wanted - {me}) if peer in members
            }
            if not self.links.connected:
                for address in self._settings.node.peers:
                    targets.setdefault(address, None)
            self.links.dial(targets)
            await asyncio.sleep(DIAL_INTERVAL_S)

    async def _keep_asking_to_join(self) -> None:
        """A node that is no member asks the addresses it knows until the log says it is one."""
        ledger = self._consensus.replica.ledger
        if self._identity.node_id in ledger.members:
            return
        join = Join(
            member=self._identity.node_id,
            address=self._settings.node.advertised,
            shard_tokens=self.state.shard_tokens,
            share_permille=self._settings.train.share_permille,
            time_ms=time.time_ns() // 1_000_000,
        )
        signature = self._identity.sign(join.signed_bytes(self.mesh_id))
        operation = operation_bytes(replace(join, signature=signature))
        addresses = [*self._settings.node.peers, *(f.address for f in self._genesis.founders)]
        while self._identity.node_id not in self._consensus.replica.ledger.members:
            await ask_to_join(self.links, list(dict.fromkeys(addresses)), operation)
            await asyncio.sleep(JOIN_INTERVAL_S)
        log.info("membership.granted")

    # --- what happens ---------------------------------------------------------------------------

    def _on_message(self, peer: bytes, message: LinkMessage) -> None:
        match message:
            case ConsensusMessage(data):
                self._consensus.received(peer, data)
            case Announced() | SummaryMessage():
                self._gossip.received(peer, message)
            case _:
                raise PeerError("malformed-message", "a handshake frame after the handshake")

    def _on_certified(self, found: Certified, materialised: bool) -> None:
        self.state.remember(
            CheckpointFacts(
                height=found.height,
                round=found.record.round,
                root=found.record.anchor_root,
                record=found.record.digest,
                signatures=len(found.certificate.signers),
                view=found.certificate.view,
                deltas=len(found.record.cut),
                tokens=found.parameters.tokens,
                materialised=materialised,
            )
        )
        if materialised and found.height == self._model.height:
            self._evaluate_soon()

    def _evaluate_soon(self) -> None:
        if self._trainer is not None and self._trainer.ready and not self._evaluating:
            self._evaluating = True
            self._evaluation = asyncio.create_task(self._evaluate(self._trainer))

    async def _evaluate(self, trainer: TrainerProcess) -> None:
        """Measure the newest committed model on this node's held-out text, between rounds."""
        try:
            height, committed = self._model.height, self._model.committed
            await self._model.compute(lambda: committed.to_weights(out=trainer.evaluation_slot()))
            loss = await trainer.evaluate(str(height))
            self.state.facts.evaluations[height] = loss
            log.info("checkpoint.evaluated", height=height, held_out_loss=round(loss, 4))
        except TrainingFailed:
            return
        finally:
            self._evaluating = False

    async def _on_unsaid(self, unsaid: list[Unsaid]) -> None:
        if self._rounds is not None:
            await self._rounds.say_again(unsaid)

    # --- what others ask for (server.Backend) -----------------------------------------------------

    async def delta_blob(self, member: bytes, sequence: int, delta_id: bytes) -> bytes | None:
        """Return a delta that is held, or None."""
        return await self._database.get_delta(member, sequence, delta_id)

    async def checkpoint(self, height: int) -> tuple[CheckpointParts, bytes] | None:
        """Return a committed checkpoint (0: the newest) and its anchor, or None."""
        heights = self._store.heights()
        wanted = height or (heights[-1] if heights else 0)
        if wanted not in heights:
            return None
        files = await asyncio.to_thread(self._store.read, wanted)
        parts = CheckpointParts(
            files.height, files.operation, files.certificate, len(files.anchor), files.settled
        )
        return parts, files.anchor

    async def genesis(self) -> tuple[GenesisParts, bytes]:
        """Return the genesis and its anchor."""
        path = self._settings.node.directory / "genesis" / "anchor.bin"
        anchor = await asyncio.to_thread(path.read_bytes)
        return GenesisParts(self._genesis.document, len(anchor), self._tokenizer), anchor

    async def submit_join(self, operation: bytes) -> str:
        """Hand a signed Join to the validators; returns "" or why not."""
        reason = self._consensus.replica.check(operation)
        if reason is None:
            self._consensus.submit(operation)
            return ""
        # Asking twice is what a joiner does whose answer was lost.
        return "" if reason == "already-executed" else reason

    def status(self) -> StatusReply:
        """Return everything that there is to know about this node."""
        return status_reply(self.state)
