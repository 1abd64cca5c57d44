"""Asks the nodes of a mesh what they do, and keeps what they said: the page's memory.

One node is asked first, the one that the operator named. Whom it knows is asked too where that is
possible: members answer members, so a node's directory opens the whole mesh, and an address that
one node. Only the named node says who else there is: another member could invent some.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from shoal.node.backup import KEY_NAME
from shoal.node.config import CONFIG_NAME, load_settings
from shoal.node.errors import UserError
from shoal.node.identity import Identity
from shoal.node.inspect_client import StatusReply, watch_status
from shoal.node.mesh_picture import Answer, Picture, clean, news, picture

TICK_S = 0.5
# A stream of a machine that was switched off never ends by itself.
SILENCE_S = 5.0
RETRY_S = 1.0
MEMBERS_MAX = 128
# Losses and events: some hours of a small mesh.
ENTRIES_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask: an address, and for the nodes behind it the directory to ask as.

    node_id: hex of who has to answer there; "" is whoever does.
    """

    address: str
    member: Path | None = None
    node_id: str = ""


def find_target(text: str) -> Target:
    """A node's directory, one that holds those of several, or host:port; raises UserError."""
    directory = Path(text)
    if not directory.is_dir():
        return Target(text)
    if not (directory / CONFIG_NAME).exists():
        inside = sorted(path.parent for path in directory.glob(f"*/{CONFIG_NAME}"))
        directory = inside[0] if inside else directory
    address = load_settings(directory).node.inspect_listen
    if not address:
        raise UserError(f'{directory} has inspect = "off" under [node]: there is nobody to ask')
    key = directory / KEY_NAME
    if not os.access(key, os.R_OK):
        return Target(address)
    return Target(address, directory, Identity.load(key).node_id.hex())


class Journal:
    """Numbered entries, the newest ENTRIES_MAX of them; each reader takes what it lacks."""

    def __init__(self) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=ENTRIES_MAX)
        self.count = 0

    def add(self, **entry: Any) -> None:
        """Write one down."""
        self.count += 1
        self._entries.append({"number": self.count, **entry})

    def since(self, count: int) -> list[dict[str, Any]]:
        """Those after the first `count`, as far as they are kept."""
        lacking = min(self.count - count, len(self._entries))
        return list(islice(self._entries, len(self._entries) - lacking, None))


class MeshWatch:
    """The newest picture of a mesh, and how it came about."""

    def __init__(self, target: Target, wall_clock: Callable[[], float]) -> None:
        """wall_clock: seconds since 1970, for the events."""
        self.journal = Journal()
        self.picture: Picture = {"trouble": f"asking {target.address}"}
        self.ticked = asyncio.Event()
        self._target = target
        self._home = target.node_id
        self._wall_clock = wall_clock
        self._answers: dict[str, Answer] = {}
        self._addresses: dict[str, str] = {}
        self._asked: set[str] = set()
        self._losses: dict[tuple[str, int], float] = {}

    async def run(self) -> None:
        """Ask and look, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ask_home(self._target.address))
            while True:
                if self._target.member is not None:
                    for node in sorted(self._addresses.keys() - self._asked):
                        self._asked.add(node)
                        group.create_task(self._ask_member(node, self._target.member))
                self._look()
                await asyncio.sleep(TICK_S)

    async def _ask_home(self, address: str) -> None:
        while True:
            await self._follow(self._home, watch_status(address))

    async def _ask_member(self, node: str, member: Path) -> None:
        """Ask where it is now, which may change, until it is none any more."""
        while node in self._addresses:
            place = f"{node}@{self._addresses[node]}"
            await self._follow(node, watch_status(place, member=member))
        self._asked.discard(node)

    def _look(self) -> None:
        """Make the next picture, and note what is new in it."""
        ids = sorted({self._home, *self._addresses} - {""})
        after = picture(ids, self._answers, self._home)
        if "trouble" in after:
            after["trouble"] = f"nobody answers; is a node running at {self._target.address}?"
        for tone, text in news(self.picture, after):
            self.journal.add(at=self._wall_clock(), tone=tone, text=text)
        for member in after.get("members", []):
            self._note_loss(member["id"], member["round"], member["loss"])
        for each in reversed(after.get("checkpoints", [])):
            self._note_loss("shared", each["round"], each["loss"])
        self.picture = after
        self.ticked.set()
        self.ticked = asyncio.Event()

    def _note_loss(self, series: str, number: int, loss: float) -> None:
        if loss and self._losses.get((series, number)) != loss:
            self._losses[series, number] = loss
            while len(self._losses) > ENTRIES_MAX:
                del self._losses[next(iter(self._losses))]
            self.journal.add(loss=[series, number, loss])

    async def _follow(self, node: str, replies: AsyncIterator[StatusReply]) -> None:
        """Listen until it says nothing more. `node`: who has to speak; "" is whoever is there."""
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    reply = await anext(replies)
                speaker = clean(reply.node_id)
                # Whoever answers in another's name would speak for it on the page.
                if node in ("", speaker):
                    node = speaker
                    self._heard(node, reply)
        except (UserError, TimeoutError):
            if node in self._answers:
                self._answers[node] = Answer(self._answers[node].reply, fresh=False)
        await asyncio.sleep(RETRY_S)

    def _heard(self, node: str, reply: StatusReply) -> None:
        self._home = self._home or node
        if node == self._home:
            self._learn(reply)
        elif node not in self._addresses:
            return
        self._answers[node] = Answer(reply, fresh=True)

    def _learn(self, reply: StatusReply) -> None:
        """Who else is a member, as the named node says."""
        known = {clean(peer.node_id): peer.address for peer in reply.peers if peer.liveness}
        if not known and reply.consensus.members > 1:
            # It has just started, and knows nobody yet.
            return
        for gone in self._addresses.keys() - known.keys():
            self._answers.pop(gone, None)
        self._addresses = dict(sorted(known.items())[:MEMBERS_MAX])
