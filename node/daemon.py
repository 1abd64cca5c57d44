"""`shoal run`: from a directory to a running node and back, in order.

    settings -> key, genesis, database -> newest certified checkpoint -> training process ->
    listener -> work until a signal -> training, links, listener, database

What is wrong with the directory, the data or the port is said in one line before anything runs.
"""

import asyncio
import gc
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
import torch
import uvloop

from shoal import __version__
from shoal.consensus.epochs import EpochChain, build_chain
from shoal.consensus.errors import ConsensusError
from shoal.consensus.restore import known_epochs
from shoal.consensus.validators import STABILITY_INTERVAL
from shoal.gossip.anchor import Anchor
from shoal.gossip.errors import GossipError
from shoal.gossip.settled import SettledState
from shoal.node.aside import aside
from shoal.node.backup import backup_warnings
from shoal.node.certified import certified, check_state
from shoal.node.checkpoints import CheckpointStore
from shoal.node.config import Settings
from shoal.node.database import Database
from shoal.node.errors import OK, DamagedError, PeerError, UserError
from shoal.node.genesis import Genesis, load_genesis
from shoal.node.hub import local_data
from shoal.node.identity import Identity, short, verify
from shoal.node.log import configure_logging
from shoal.node.membership import MembershipEnded
from shoal.node.metrics import MetricsServer, serve_metrics
from shoal.node.node import Node
from shoal.node.recorder import Tracker, recording
from shoal.node.server import Server
from shoal.node.shared_model import SharedModel
from shoal.node.sources import token_cache
from shoal.node.trackers import open_trackers
from shoal.node.trainer import TrainerProcess
from shoal.node.trainer_child import TrainerChild
from shoal.training.task_name import TaskName

log = structlog.get_logger()


def run(settings: Settings, child: TrainerChild | None) -> int:
    """Run a node until SIGINT or SIGTERM; returns the exit code. Raises UserError.

    child: the training process; None for a node that does not train.
    """
    configure_logging(
        level=settings.log.level, output_format=settings.log.format, node=settings.node.name
    )
    # The model's arithmetic here is short and bound by memory; more threads would only fight the
    # training process for the cores.
    torch.set_num_threads(1)
    # Before the loop runs: their libraries take long to load.
    trackers = open_trackers(settings)
    return uvloop.run(run_node(settings, child, trackers))


@dataclass(frozen=True, slots=True)
class Opened:
    """A node built from its directory, not running yet; whoever has it closes its database."""

    node: Node
    genesis: Genesis
    model: SharedModel
    database: Database


async def open_node(settings: Settings) -> Opened:
    """Build a node from its directory; raises UserError and leaves nothing open."""
    directory = settings.node.directory
    identity = Identity.load(directory / "identity.key")
    genesis, genesis_anchor, tokenizer = load_genesis(directory / "genesis")
    database = Database(directory / "safety.db")
    try:
        rows = await database.load_rows()
        epochs = known_epochs(rows, genesis.first_epoch(), STABILITY_INTERVAL)
        anchor, settled = newest_state(directory, genesis, genesis_anchor, epochs)
        model = SharedModel(
            me=identity.node_id,
            mesh_id=genesis.mesh_id,
            mesh=genesis.parameters,
            committed=anchor,
            settled=settled,
            database=database,
        )
        node = Node(
            settings=settings,
            identity=identity,
            genesis=genesis,
            tokenizer=tokenizer,
            model=model,
            database=database,
            rows=rows,
            sequence=await database.own_sequence(),
        )
        await model.restore_pending()
    except BaseException:
        await database.close()
        raise
    return Opened(node, genesis, model, database)


async def run_node(
    settings: Settings,
    child: TrainerChild | None,
    trackers: Mapping[str, Tracker] | None = None,
) -> int:
    """Build a node from its directory, run it, and close everything in order."""
    opened = await open_node(settings)
    try:
        log.info(
            "node.starting",
            version=__version__,
            id=short(opened.node.state.node_id),
            mesh=opened.genesis.mesh_id.hex()[:16],
            height=opened.model.height,
            boot=opened.database.boots,
            byzantine_tolerance=opened.node.state.consensus.replica.inspect().faults_tolerated,
        )
        for warning in backup_warnings(settings.node.directory, opened.node.state.node_id):
            log.warning("identity.no-backup", why=warning)
        # What is loaded by now stays. Walking all of torch's modules would stop the loop for long.
        gc.freeze()
        parameters = opened.model.schema.layout.total
        trainer = None
        configuration: Mapping[str, Any] = {}
        if child is not None:
            trainer = TrainerProcess(child, parameters)
            prepare = partial(worker_configuration, settings, opened.genesis)
            configuration = await aside(prepare, None)
        node = opened.node
        async with recording(node.state, opened.database.boots, trackers or {}) as recorder:
            node.on_row = recorder.tell
            await _serve(node, settings, trainer, configuration)
    finally:
        await opened.database.close()
    return OK


def newest_state(
    directory: Any, genesis: Genesis, genesis_anchor: Anchor, epochs: EpochChain
) -> tuple[Anchor, SettledState]:
    """Return the newest certified checkpoint of a node's directory, or the genesis.

    Raises DamagedError when what lies there is not what was certified.
    """
    store = CheckpointStore(directory / "checkpoints")
    heights = store.heights()
    if not heights:
        settled = SettledState.genesis(
            genesis.epoch_parameters(), staleness=genesis.parameters.staleness
        )
        return genesis_anchor, settled
    files = store.read(heights[-1])
    try:
        if files.links:
            epochs = build_chain(files.links, genesis.first_epoch(), STABILITY_INTERVAL, verify)
        found = certified(files.operation, files.certificate, epochs)
        outcome = check_state(found, files.settled, files.anchor, genesis)
    except (PeerError, GossipError, ConsensusError) as error:
        raise DamagedError(
            f"the checkpoint {store.path(heights[-1])} is damaged ({error}); move that directory "
            "away and start again: it is fetched from the neighbours"
        ) from None
    return outcome.anchor, outcome.settled


def worker_configuration(settings: Settings, genesis: Genesis) -> Mapping[str, Any]:
    """Return what the training process is told at its start; raises UserError.

    Blocks while data is fetched from the hub, where its operator named it so.
    """
    train, mesh = settings.train, genesis.parameters
    return {
        "model": genesis.model_config,
        "lora": None if genesis.lora is None else genesis.lora.to_json(),
        "base": train.base or None,
        "task": train.task or None,
        "tokenizer": str(settings.node.directory / "genesis" / "tokenizer"),
        # What it is to a task, that says.
        "data": train.data if TaskName.of(genesis.model_config) else local_data(train.data),
        "token_cache": str(token_cache(train, settings.node.directory)),
        "device": train.device,
        "threads": train.threads,
        "processes": train.processes,
        "nice": train.nice,
        "seed": train.seed,
        "batch": train.batch,
        "sequence": train.sequence,
        "eval_batches": train.eval_batches,
        "learning_rate": mesh.learning_rate,
        "muon_scale": mesh.muon_scale,
        "warmup_tokens": mesh.warmup_tokens,
        "schedule_tokens": mesh.schedule_tokens,
    }


async def _serve(
    node: Node,
    settings: Settings,
    trainer: TrainerProcess | None,
    configuration: Mapping[str, Any],
) -> None:
    server = Server(node, node.links, node.meters)
    places = settings.node
    join, inspect, prometheus = places.join_listen, places.inspect_listen, places.metrics_listen
    await server.start(places.listen, join=join, inspect=inspect)
    metrics: MetricsServer | None = None
    work: asyncio.Task[None] | None = None
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        metrics = serve_metrics(prometheus, node.status) if prometheus else None
        log.info(
            "node.listening",
            address=places.listen,
            join=join,
            inspect=inspect,
            metrics=prometheus,
        )
        if trainer is not None:
            # Voting does not wait until it is ready: on a busy machine that takes many seconds.
            await trainer.start(configuration)
        work = asyncio.create_task(node.run(trainer), name="node")
        stop = asyncio.create_task(stopping.wait(), name="signals")
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if work.done():
            _raise_first(work)
            return
        log.info("node.stopping")
    finally:
        if work is not None:
            work.cancel()
            with suppress(asyncio.CancelledError, ExceptionGroup):
                await work
        if trainer is not None:
            await trainer.stop()
        if metrics is not None:
            await metrics.stop()
        await server.stop()
        await node.stop()


def _raise_first(work: "asyncio.Task[None]") -> None:
    """Raise what ended the node; a user's error keeps its one line."""
    error = work.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, MembershipEnded):
        # It left, and whoever remains can do without it.
        return
    if isinstance(error, UserError):
        raise error
    if error is not None:
        log.error("node.crashed", exc_info=error)
        raise error
