"""One node's parts, wired together: who hears of what.

links ──► gossip driver ──► shared model ◄── round loop ◄── training process
  └─────► consensus driver ◄──► checkpointer ──► checkpoints on disk
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from shoal.compression.codec import max_frame_bytes
from shoal.compression.layout import CHUNK
from shoal.consensus.attest import Attestor, AttestorConfig
from shoal.consensus.epochs import join_links
from shoal.consensus.ledger import Ledger
from shoal.consensus.members import Member
from shoal.consensus.replica import Replica
from shoal.consensus.state import Config
from shoal.gossip.liveness import Message
from shoal.node.addresses import split_peer
from shoal.node.bulk_wire import Contact, GenesisParts
from shoal.node.capture import open_capture
from shoal.node.certified import Certified, Certifier, certified
from shoal.node.checkpointing import APPLIED, Checkpointer
from shoal.node.checkpoints import CheckpointStore
from shoal.node.chronicle import Chronicle
from shoal.node.clock import now_ms
from shoal.node.company import Company, contacts
from shoal.node.config import Settings
from shoal.node.consensus_driver import ConsensusDriver, Duties
from shoal.node.cut_watch import watch_for_cuts
from shoal.node.database import Database
from shoal.node.delta_log import check_delta_log
from shoal.node.dialling import keep_dialling
from shoal.node.door import Door
from shoal.node.errors import PeerError
from shoal.node.evaluation import Evaluation
from shoal.node.explain import ExplainReply, explain_reply
from shoal.node.failure_detection import detection_of_node
from shoal.node.genesis import Genesis
from shoal.node.gossip_driver import GossipDriver, relay_settings
from shoal.node.holdings import open_holdings
from shoal.node.identity import Identity, verify
from shoal.node.links import Links
from shoal.node.membership import Membership
from shoal.node.mesh_parameters import ParametersInForce
from shoal.node.meters import LoopLag, Meters
from shoal.node.repair import Repair, repair_of_node
from shoal.node.round import RoundLoop
from shoal.node.run_rows import Row
from shoal.node.shared_model import SharedModel, Unsaid
from shoal.node.spot_checks import SpotChecks
from shoal.node.statements import statement_reader
from shoal.node.status import CHECKPOINTS_SHOWN, NodeState, StatusReply, status_reply
from shoal.node.trainer import TrainerProcess, TrainingFailed
from shoal.node.trust import Trust
from shoal.node.wire import Announced, ConsensusMessages, LinkMessage, SummaryMessage

log = structlog.get_logger()


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
        self._told = dict(map(split_peer, settings.node.peers))
        self.on_row: Callable[[Row], None] = lambda row: None  # every round and checkpoint
        self.meters = Meters()
        self._store = CheckpointStore(settings.node.directory / "checkpoints")
        anchor_bytes = 4 * genesis.schema.layout.total
        self.holdings = open_holdings(settings, anchor_bytes=anchor_bytes, meters=self.meters)
        self.links = self._make_links(database.boots)
        self._gossip = self._make_gossip()
        self._certifier = Certifier(genesis)
        self._mesh = ParametersInForce(
            genesis.parameters,
            epochs=lambda: self._consensus.replica.epochs,
            epoch=lambda: self._consensus.replica.validators.epoch,
        )
        self._checkpointer = self._make_checkpointer()
        self._consensus = self._make_consensus(rows)
        self._door = Door(self._consensus.replica, self._mesh, self._consensus.submit)
        model.mesh = self._mesh.now
        self._detection = detection_of_node(
            identity=identity,
            boot=database.boots,
            patience=settings.gossip.patience,
            links=self.links,
            consensus=self._consensus,
            gossip=self._gossip,
        )
        self._repair = self._make_repair()
        self._trainer: TrainerProcess | None = None
        self._rounds: RoundLoop | None = None
        self._spot_checks = SpotChecks(identity, model, self._mesh, self._consensus)
        self._evaluation = Evaluation(model, lambda: self.state.facts, lambda row: self.on_row(row))
        self.state = NodeState(
            settings=settings,
            genesis=genesis,
            mesh=self._mesh,
            node_id=identity.node_id,
            meters=self.meters,
            lag=LoopLag(),
            links=self.links,
            model=model,
            consensus=self._consensus,
            gossip=self._gossip,
            detection=self._detection,
            chronicle=Chronicle(self._detection.states),
            strikes=self._spot_checks.strikes,
        )

    def _make_links(self, boot: int) -> Links:
        company = Company(
            lambda: self._consensus.replica, me=self._identity.node_id, told=self._told
        )
        return Links(
            identity=self._identity,
            mesh_id=self.mesh_id,
            address=self._settings.node.advertised,
            join_address=self._settings.node.join_advertised,
            meters=self.meters,
            boot=boot,
            trust=Trust(self._identity, company.trusted),
            on_evidence=lambda operation: self._consensus.submit(operation),
            on_up=self._on_up,
            on_down=self._on_down,
            on_message=self._on_message,
        )

    def _make_gossip(self) -> GossipDriver:
        return GossipDriver(
            model=self._model,
            links=self.links,
            meters=self.meters,
            settings=relay_settings(self._settings.gossip),
            on_evidence=lambda operation: self._consensus.submit(operation),
        )

    def _make_checkpointer(self) -> Checkpointer:
        return Checkpointer(
            me=self._identity.node_id,
            genesis=self._genesis,
            certifier=self._certifier,
            mesh=self._mesh.now,
            epochs=lambda: self._consensus.replica.epochs,
            model=self._model,
            gossip=self._gossip,
            links=self.links,
            meters=self.meters,
            database=self._database,
            store=self._store,
            tokenizer=self._tokenizer,
            ledger=lambda: self._consensus.replica.ledger,
            on_certified=self._on_certified,
            on_unsaid=self._on_unsaid,
            tell=lambda row: self.on_row(row),
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
                me=me,
                timeout_ms=int(settings.base_timeout_s * 1000),
                read_statement=statement_reader(self.mesh_id),
            ),
            Ledger.genesis(self.mesh_id, founders, self._genesis.validators),
            rows,
            sign=sign,
            verify=verify,
        )
        config = AttestorConfig(
            validators=replica.validators,
            me=me,
            attempt_ms=int(settings.candidate_timeout_s * 1000),
        )
        return ConsensusDriver(
            replica=replica,
            attestor=Attestor(config, rows, sign=sign, verify=verify),
            database=self._database,
            links=self.links,
            meters=self.meters,
            me=me,
            duties=Duties(
                decided=self._checkpointer.decided,
                restored=self._checkpointer.restored,
                propose=self._checkpointer.propose,
                check=self._checkpointer.check,
                submitted=self._checkpointer.submitted,
            ),
            capture=open_capture(self._settings, self._database.boots),
        )

    def _make_repair(self) -> Repair:
        return repair_of_node(
            me=self._identity.node_id,
            holdings=self.holdings,
            database=self._database,
            meters=self.meters,
            links=self.links,
            ledger=lambda: self._consensus.replica.ledger,
            validators=lambda: self._consensus.replica.validators,
            height=lambda: self._model.height,
            certify=self._certifier.check,
            check_delta_log=lambda each, path: check_delta_log(
                each, path, frame_bytes_max=max_frame_bytes(self._model.schema.layout, CHUNK)
            ),
            settings=self._settings.retention,
            dead=lambda: self._detection.dead,
            lost=lambda: self._detection.lost,
        )

    def _make_membership(self) -> Membership:
        return Membership(
            settings=self._settings,
            identity=self._identity,
            genesis=self._genesis,
            links=self.links,
            replica=self._consensus.replica,
            height=lambda: self._model.height,
            shard_tokens=lambda: self.state.shard_tokens,
            submit=self._consensus.submit,
        )

    def _on_up(self, peer: bytes) -> None:
        self._detection.link_up(peer)
        self._gossip.link_up(peer)
        self._consensus.linked(peer)

    def _on_down(self, peer: bytes) -> None:
        self._detection.link_down(peer)
        self._gossip.link_down(peer)

    # --- running --------------------------------------------------------------------------------

    async def run(self, trainer: TrainerProcess | None) -> None:
        """Work until cancelled. Raises UserError where training cannot start; all else is ours."""
        applied = await self._database.get_meta(APPLIED)
        height = self._model.height
        shown = await self._database.cuts(height - CHECKPOINTS_SHOWN + 1, height)
        for _, operation, certificate in shown:
            found = certified(operation, certificate, self._consensus.replica.epochs)
            self._on_certified(found, True)
        self._checkpointer.follow(self._consensus.replica.ledger.height)
        self._consensus.start(int.from_bytes(applied, "big") if applied else 0)
        works: list[Coroutine[Any, Any, None]] = [
            self.state.lag.run(),
            self.links.trust.run(),
            self._gossip.run(),
            self._consensus.run(),
            self._checkpointer.run(),
            self._repair.run(),
            watch_for_cuts(
                model=self._model,
                consensus=self._consensus,
                rounds_per_checkpoint=lambda: self._model.rules.rounds_per_checkpoint,
                round_seconds=lambda: self.state.facts.round_seconds,
                chronicle=self.state.chronicle,
            ),
            self._detection.run(),
            keep_dialling(
                self.links,
                self._consensus,
                lambda: self._detection.dead,
                me=self._identity.node_id,
                degree=self._settings.gossip.degree,
                told=self._told,
            ),
            self._take_part(trainer),
        ]
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)

    async def stop(self) -> None:
        """End all that runs beside; after this the database may close."""
        await self._consensus.close()
        await self.links.close()
        await self._gossip.close()
        if self._trainer is not None:
            await self._trainer.stop()
        await self._evaluation.close()

    async def _take_part(self, trainer: TrainerProcess | None) -> None:
        """Join once it is known how much text there is to train on, and train."""
        async with asyncio.TaskGroup() as group:
            if trainer is not None:
                self.state.shard_tokens = await trainer.shard_tokens()
                group.create_task(self._train(trainer))
            group.create_task(self._make_membership().run())

    async def _train(self, trainer: TrainerProcess) -> None:
        await trainer.started()
        self.state.device = str(trainer.ready["device"])
        self._trainer = trainer
        self._rounds = RoundLoop(
            identity=self._identity,
            model=self._model,
            trainer=trainer,
            train=self._settings.train,
            directory=self._settings.node.directory,
            sequence=self._sequence,
            tell=lambda row: self.on_row(row),
        )
        self.state.facts = self._rounds.facts
        try:
            await self._rounds.run()
        except TrainingFailed as error:
            # The node goes on relaying and voting: its shard is missing, its vote is not.
            self._rounds.facts.state = f"failed: {error}"
            log.error("training.failed", why=str(error))

    # --- what happens ---------------------------------------------------------------------------

    def _on_message(self, peer: bytes, message: LinkMessage) -> None:
        match message:
            case ConsensusMessages(messages):
                for data in messages:
                    self._consensus.received(peer, data)
            case Message():
                self._detection.received(peer, message)
            case Announced() | SummaryMessage():
                self._gossip.received(peer, message)
            case _:
                raise PeerError("malformed-message", "a handshake frame after the handshake")

    def _on_certified(self, found: Certified, materialised: bool) -> None:
        self.state.remember(found, materialised=materialised)
        if materialised and found.height == self._model.height and self._trainer is not None:
            self._evaluation.soon(self._trainer, self._spot_checks.of(self._trainer, found))

    async def _on_unsaid(self, unsaid: list[Unsaid]) -> None:
        if self._rounds is not None:
            await self._rounds.say_again(unsaid)

    # --- what others ask for (server.Backend) -----------------------------------------------------

    async def delta_blob(self, member: bytes, sequence: int, delta_id: bytes) -> bytes | None:
        """Return a delta that is held, or None."""
        return await self._database.get_delta(member, sequence, delta_id)

    async def genesis(self) -> tuple[GenesisParts, bytes]:
        """Return the genesis and its anchor."""
        path = self._settings.node.directory / "genesis" / "anchor.bin"
        anchor = await asyncio.to_thread(path.read_bytes)
        return GenesisParts(self._genesis.document, len(anchor), self._tokenizer), anchor

    def contacts(self) -> list[Contact]:
        """Return the members that this node can tell newcomers of."""
        return contacts(self._identity.node_id, self._settings.node, self.links)

    def epochs(self) -> bytes:
        """Return the chain of epochs as far as this node knows it."""
        chain = self._consensus.replica.epochs
        return join_links(chain.links(chain.last))

    async def submit(self, operation: bytes) -> str:
        """Hand a signed operation to the validators; returns "" or why not."""
        return self._door.submit(operation, now_ms())

    def address_of(self, member: bytes) -> str:
        """Return the address that the ledger has for a member, "" where it has none."""
        found = self._consensus.replica.ledger.members.get(member)
        return found.address if found is not None else ""

    def status(self) -> StatusReply:
        """Return everything that there is to know about this node."""
        return status_reply(self.state)

    def explain(self, number: int) -> ExplainReply:
        """Return how the checkpoint of a round came about."""
        return explain_reply(self.state.chronicle, self._consensus.replica.ledger.members, number)
