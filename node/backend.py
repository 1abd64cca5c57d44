"""What the servicers ask of a node: the two interfaces between server.py and what it serves."""

from pathlib import Path
from typing import Protocol

from shoal.node.bulk_wire import Contact, Description, GenesisParts, Holdings
from shoal.proto import inspect_pb2


class Serving(Protocol):
    """What the servicers ask of the checkpoints that a node keeps (node/holdings.py)."""

    async def describe(self, height: int) -> Description | None:
        """Return what the checkpoint of a height is (0: the newest whole one), or None."""

    async def chunk(self, height: int, address: bytes) -> bytes | None:
        """Return one chunk, or None."""

    async def delta_log(self, height: int) -> Path | None:
        """Return where a height's delta log lies, or None."""

    async def held(self, height: int) -> tuple[Holdings, tuple[bytes, ...]] | None:
        """Return which pieces of a height are here, and all its addresses, or None."""


class Backend(Protocol):
    """What the servicers ask of the node."""

    mesh_id: bytes

    @property
    def holdings(self) -> Serving:
        """The checkpoints that this node keeps."""

    async def delta_blob(self, member: bytes, sequence: int, delta_id: bytes) -> bytes | None:
        """Return a delta that is held, or None."""

    async def genesis(self) -> tuple[GenesisParts, bytes]:
        """Return the genesis and its anchor."""

    def contacts(self) -> list[Contact]:
        """Return the members that this node can tell newcomers of."""

    def epochs(self) -> bytes:
        """Return the chain of epochs as far as this node knows it (consensus/epochs.py)."""

    async def submit(self, operation: bytes) -> str:
        """Hand a signed operation to the validators; returns "" or why not."""

    def address_of(self, member: bytes) -> str:
        """Return the address that the ledger has for a member, "" where it has none."""

    def status(self) -> inspect_pb2.StatusReply:
        """Return everything that there is to know about this node."""

    def explain(self, number: int) -> inspect_pb2.ExplainReply:
        """Return how the checkpoint of a round came about."""
