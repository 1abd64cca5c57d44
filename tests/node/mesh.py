"""A mesh in one event loop: real nodes, real gRPC over loopback, real SQLite; only the training
process is replaced by one that makes up its progress at once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch

from shoal.gossip.delta import DeltaHeader
from shoal.gossip.density import budget_for
from shoal.node.config import Settings, load_settings
from shoal.node.daemon import open_node
from shoal.node.database import Database
from shoal.node.founding import create_mesh
from shoal.node.node import Node
from shoal.node.parameters import MeshParameters
from shoal.node.ports import free_ports
from shoal.node.server import Server
from shoal.node.shared_model import SharedModel
from shoal.node.trainer import Evaluated, RoundResult
from shoal.training.adapters import Lora

TINY_MODEL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
ROUND_SECONDS = 0.5
# Impatient settings: what a deployment waits seconds for, a test should not.
QUICK: dict[str, object] = {
    "gossip.summary_interval_s": 0.5,
    "consensus.base_timeout_s": 0.5,
    "consensus.candidate_timeout_s": 1.0,
}
TEXT = "The shoal has no leader; each fish watches its neighbours, and it turns as one.\n"


def any_address() -> str:
    """Where a node can listen. Not `free_address`, which finds the same for two tests at once."""
    return f"127.0.0.1:{free_ports(1)[0]}"


def found_mesh(
    directory: Path,
    *,
    nodes: int = 4,
    model: Mapping[str, Any] = TINY_MODEL,
    base: Path | None = None,
    lora: Lora | None = None,
    **mesh: Any,
) -> list[Path]:
    """Make the directories of a small mesh; returns them."""
    text = directory / "text"
    text.mkdir(parents=True)
    for number in range(40):
        (text / f"{number}.txt").write_text(f"Story {number}. " + TEXT * 20)
    names = [f"node{index}" for index in range(nodes)]
    create_mesh(
        directory,
        nodes=nodes,
        host="127.0.0.1",
        ports=free_ports(nodes),
        data=str(text),
        model_config=model,
        parameters=MeshParameters(
            **{
                "local_steps": 2,
                "rounds_per_checkpoint": 2,
                "budget": budget_for(256, nodes),
                **mesh,
            }
        ),
        seed=0,
        names=names,
        base=base,
        lora=lora,
    )
    return [directory / name for name in names]


class MadeUpTraining:
    """Stands in for the training process: every round is a random step, made at once."""

    def __init__(self, parameters: int, seed: int) -> None:
        self.ready = {"device": "none", "step_tokens": 32}
        self._slots = [torch.zeros(parameters) for _ in range(4)]
        self._random = torch.Generator().manual_seed(seed)
        self._rounds: asyncio.Queue[RoundResult] = asyncio.Queue()
        self._free_at = 0.0
        self.schedule: Mapping[str, float] | None = None
        # How far each round goes where all rounds of that number go, or the other way.
        self.course = 0.0
        # A slow machine takes longer for each step; None: a round always takes as long.
        self.step_seconds: float | None = None
        # More steps in a round than were ordered: so many times as many.
        self.times = 1
        self.steps: list[int] = []
        self.numbers: list[int] = []
        # Starting points that it was given, and the last one.
        self.starts = 0
        self.start = torch.zeros(parameters)

    async def shard_tokens(self) -> int:
        return 1000

    async def started(self) -> None:
        return None

    def order_round(
        self,
        number: int,
        *,
        steps: int,
        tokens_done: int,
        step_tokens: int,
        schedule: Mapping[str, float],
    ) -> None:
        del tokens_done, step_tokens
        self.schedule = schedule
        self.numbers.append(number)
        slot = self.delta_slot(number)
        slot.copy_(torch.randn(slot.shape, generator=self._random) * 1e-3)
        if self.course:
            common = torch.Generator().manual_seed(number)
            slot.add_(torch.randn(slot.shape, generator=common), alpha=self.course)
        loop = asyncio.get_running_loop()
        steps *= self.times
        self.steps.append(steps)
        seconds = ROUND_SECONDS if self.step_seconds is None else steps * self.step_seconds
        self._free_at = max(self._free_at, loop.time()) + seconds
        result = RoundResult(number, 1.0, steps, 50 * steps, seconds)
        loop.call_at(self._free_at, self._rounds.put_nowait, result)

    async def next_result(self) -> RoundResult:
        return await self._rounds.get()

    def delta_slot(self, number: int) -> torch.Tensor:
        return self._slots[1 + number % 2]

    async def weights_slot(self) -> torch.Tensor:
        return self._slots[0]

    def rebase(self, number: int) -> None:
        del number
        self.starts += 1
        self.start = self._slots[0].clone()

    def evaluation_slot(self) -> torch.Tensor:
        return self._slots[3]

    async def evaluate(self, tag: str) -> Evaluated:
        return Evaluated({"loss": float(self._slots[3].square().mean())}, 0.0)

    async def stop(self) -> None:
        return None


class RunningNode:
    """One node of the mesh under test."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.directory = directory
        self.settings = settings
        self.node: Node
        self.model: SharedModel
        self.training: MadeUpTraining
        self._work: asyncio.Task[None]
        self._server: Server
        self._database: Database

    async def start(self, *, train: bool = True) -> None:
        opened = await open_node(self.settings)
        self.node, self.model, self._database = opened.node, opened.model, opened.database
        self._server = Server(self.node, self.node.links, self.node.meters)
        places = self.settings.node
        join, inspect = places.join_listen, places.inspect_listen
        await self._server.start(places.listen, join=join, inspect=inspect)
        self.headers = list(self.model.book.pending())
        told = self.model.on_added

        def added(header: DeltaHeader) -> None:
            self.headers.append(header)
            told(header)

        self.model.on_added = added
        total, seed = self.model.schema.layout.total, self.node.state.node_id[0]
        self.training = self.make_training(total, seed)
        training: Any = self.training if train else None
        self._work = asyncio.create_task(self.node.run(training))

    def make_training(self, parameters: int, seed: int) -> MadeUpTraining:
        return MadeUpTraining(parameters, seed)

    async def stop(self) -> None:
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        await self._server.stop()
        await self.node.stop()
        await self._database.close()

    @property
    def height(self) -> int:
        return self.model.height

    def rebuilt(self) -> dict[int, str]:
        """The roots of the heights whose anchors it has rebuilt and written to its disk."""
        return {c.height: c.root for c in self.node.status().checkpoints if c.materialised}

    @property
    def id(self) -> bytes:
        """Its node id."""
        return self.node.state.node_id

    def failed(self) -> BaseException | None:
        return self._work.exception() if self._work.done() else None

    def cause(self) -> BaseException | None:
        """What ended the node, out of the groups that it came in."""
        error = self.failed()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        return error


@asynccontextmanager
async def running(
    directories: list[Path], *, rounds: int, **settings: object
) -> AsyncIterator[list[RunningNode]]:
    """Start a node for each directory, and stop them all at the end.

    settings: by dotted name with "__" for the dot, like retention__keep_whole.
    """
    further = {name.replace("__", "."): value for name, value in settings.items()}
    changes = {**QUICK, "train.max_rounds": rounds, **further}
    nodes: list[RunningNode] = []
    try:
        for directory in directories:
            node = RunningNode(directory, load_settings(directory, changes))
            await node.start()
            nodes.append(node)
        yield nodes
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))


async def until(
    condition: Callable[[], bool], nodes: list[RunningNode], *, seconds: float = 60.0
) -> None:
    """Wait for a condition; a node that crashed fails the test with its own error."""
    async with asyncio.timeout(seconds):
        while not condition():
            for node in nodes:
                if (error := node.failed()) is not None:
                    raise error
            await asyncio.sleep(0.05)


async def until_rebuilt(nodes: list[RunningNode], least: int, *, seconds: float = 60.0) -> int:
    """Wait until all have rebuilt one height of `least` or more; returns the newest such height.

    Not each height: a node that was away or slow goes to the newest certified one at once. What
    all have must be equal, at every height.
    """

    def common() -> set[int]:
        return set[int].intersection(*(set(node.rebuilt()) for node in nodes))

    await until(lambda: max(common(), default=0) >= least, nodes, seconds=seconds)
    heights = common()
    for height in heights:
        assert len({node.rebuilt()[height] for node in nodes}) == 1, f"they differ at {height}"
    return max(heights)
