"""Makes a schedule happen: begins each fault at its time and ends it again."""

import asyncio
import signal
import time
from collections.abc import Callable

from tests.chaos.cluster import Cluster
from tests.chaos.network import Network, conditions_of
from tests.chaos.schedule import Fault


class Injector:
    """Carries out faults on a cluster and on the network between its nodes."""

    def __init__(
        self, cluster: Cluster, network: Network, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._cluster = cluster
        self._network = network
        self._say = say
        self._active: list[Fault] = []
        self._applying = asyncio.Lock()
        # When each fault really began, on the monotonic clock.
        self.began: list[float] = []

    async def run(self, faults: list[Fault]) -> None:
        """Make all of it happen; returns when the last fault is over."""
        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._happen(fault, start))

    async def _happen(self, fault: Fault, start: float) -> None:
        await asyncio.sleep(max(0.0, start + fault.at_s - time.monotonic()))
        self._say(str(fault))
        self._active.append(fault)
        self.began.append(time.monotonic())
        await self._begin(fault)
        await asyncio.sleep(fault.lasts_s)
        self._active.remove(fault)
        await self._end(fault)

    async def _begin(self, fault: Fault) -> None:
        for node in fault.nodes:
            if fault.kind == "kill":
                self._cluster.kill(node)
            else:
                self._cluster.signal(node, signal.SIGSTOP)
        await self._apply()

    async def _end(self, fault: Fault) -> None:
        for node in fault.nodes:
            if fault.kind == "kill":
                self._cluster.start(node)
            else:
                self._cluster.signal(node, signal.SIGCONT)
        await self._apply()

    async def _apply(self) -> None:
        # Two faults may begin at once, and the older picture must not win.
        async with self._applying:
            await self._network.apply(conditions_of(self._active))
