"""One validator of the consensus benchmark: everything of a node's consensus, and no training.

python -m benchmarks.consensus_worker DIRECTORY INDEX. Links, server, driver, replica and database
are the daemon's own. Takes one JSON object per line on standard input, answers with one on standard
output, and ends when its input does.
"""

import asyncio
import gc
import hashlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.consensus.attest import Attestor, AttestorConfig
from shoal.consensus.effects import Decided, Propose, Restored
from shoal.consensus.epochs import join_links
from shoal.consensus.ledger import MAX_MEMBERS, Ledger
from shoal.consensus.members import Member
from shoal.consensus.records import CheckpointRecord, Join, operation_bytes
from shoal.consensus.replica import Replica
from shoal.consensus.state import Config
from shoal.consensus.validators import Validators
from shoal.node.bulk_wire import Contact, Description, GenesisParts, Holdings
from shoal.node.consensus_driver import ConsensusDriver, Duties
from shoal.node.database import Database
from shoal.node.identity import Identity, verify
from shoal.node.links import Links
from shoal.node.meters import Meters
from shoal.node.server import Server
from shoal.node.trust import Trust
from shoal.node.wire import ConsensusMessages, LinkMessage
from shoal.proto.inspect_pb2 import ExplainReply, StatusReply

APPLIED = "applied"
ORIGINS = 64
# Longer than any view change here; an operation that takes longer is lost.
PATIENCE_S = 60.0
PROBES = 200


class Nothing:
    """A backend that has nothing to serve (server.Backend), and its holdings (server.Serving)."""

    def __init__(self, mesh_id: bytes) -> None:
        self.mesh_id = mesh_id

    @property
    def holdings(self) -> "Nothing":
        return self

    async def delta_blob(self, member: bytes, sequence: int, delta_id: bytes) -> bytes | None:
        return None

    async def describe(self, height: int) -> Description | None:
        return None

    async def chunk(self, height: int, address: bytes) -> bytes | None:
        return None

    async def delta_log(self, height: int) -> Path | None:
        return None

    async def held(self, height: int) -> tuple[Holdings, tuple[bytes, ...]] | None:
        return None

    async def genesis(self) -> tuple[GenesisParts, bytes]:
        raise AssertionError("nobody asks for it here")

    def contacts(self) -> list[Contact]:
        return []

    def epochs(self) -> bytes:
        return join_links(())

    async def submit(self, operation: bytes) -> str:
        return "no"

    def status(self) -> StatusReply:
        return StatusReply()

    def address_of(self, member: bytes) -> str:
        del member
        return ""

    def explain(self, number: int) -> ExplainReply:
        return ExplainReply()


class Origin:
    """A founder that moves house again and again: each Join is a new operation."""

    def __init__(self, validator: int, number: int) -> None:
        seed = hashlib.sha256(f"origin/{validator}/{number}".encode()).digest()
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.member = self._key.public_key().public_bytes_raw()
        self._time_ms = 0

    def operation(self, mesh_id: bytes) -> tuple[tuple[bytes, int], bytes]:
        """The next Join: what to know it by, and its bytes."""
        self._time_ms = max(self._time_ms + 1, time.time_ns() // 1_000_000)
        join = Join(
            member=self.member,
            address="origin:1",
            shard_tokens=1,
            share_permille=1,
            time_ms=self._time_ms,
        )
        signed = replace(join, signature=self._key.sign(join.signed_bytes(mesh_id)))
        return (self.member, self._time_ms), operation_bytes(signed)


def make_origins(validator: int, validators: int) -> list[Origin]:
    """One validator's: as many as the mesh has room for, since all of them are members."""
    count = min(ORIGINS, MAX_MEMBERS // validators - 1)
    return [Origin(validator, number) for number in range(count)]


class Worker:
    """One validator."""

    def __init__(self, directory: Path, index: int) -> None:
        spec = json.loads((directory / "mesh.json").read_text())
        mesh_id = bytes.fromhex(spec["mesh_id"])
        self._timeout_s = float(spec["timeout_s"])
        self._addresses = {bytes.fromhex(key): address for key, address in spec["members"].items()}
        home = directory / f"validator{index}"
        self._identity = Identity.load(home / "identity.key")
        self._me = self._identity.node_id
        self._validators = Validators(mesh_id, 0, tuple(sorted(self._addresses)))
        self._meters = Meters()
        self._database = Database(home / "safety.db")
        self._waiting: dict[tuple[bytes, int], asyncio.Future[float]] = {}
        self._origins = make_origins(index, len(self._addresses))
        self._links = Links(
            identity=self._identity,
            mesh_id=mesh_id,
            address=self._addresses[self._me],
            meters=self._meters,
            boot=self._database.boots,
            trust=Trust(self._identity, lambda: self._addresses.keys()),
            on_up=lambda peer: None,
            on_down=lambda peer: None,
            on_message=self._on_message,
            on_evidence=lambda operation: None,
        )
        self._driver: ConsensusDriver

    async def run(self) -> None:
        """Work until the input ends."""
        rows = await self._database.load_rows()
        applied = await self._database.get_meta(APPLIED)
        self._driver = self._make_driver(rows)
        server = Server(Nothing(self._validators.mesh_id), self._links, self._meters)
        await server.start(self._addresses[self._me])
        trusting = asyncio.create_task(self._links.trust.run())
        self._driver.start(int.from_bytes(applied, "big") if applied else 0)
        work = asyncio.create_task(self._driver.run())
        self._links.dial({a: key for key, a in self._addresses.items() if key != self._me})
        gc.freeze()
        answering = asyncio.create_task(self._answer_commands())
        done, _ = await asyncio.wait((work, answering), return_when=asyncio.FIRST_COMPLETED)
        work.cancel()
        trusting.cancel()
        await self._driver.close()
        await server.stop()
        await self._links.close()
        await self._database.close()
        for task in done:
            task.result()

    def _make_driver(self, rows: dict[str, bytes]) -> ConsensusDriver:
        members = [(key, Member(address, 1, 1)) for key, address in self._addresses.items()]
        # Nobody has to be invited who was there from the beginning.
        for validator in range(len(self._addresses)):
            for origin in make_origins(validator, len(self._addresses)):
                members.append((origin.member, Member("origin:1", 1, 1)))
        timeout_ms = int(self._timeout_s * 1000)
        replica = Replica.restore(
            Config(me=self._me, timeout_ms=timeout_ms),
            Ledger.genesis(self._validators.mesh_id, members, self._validators.keys),
            rows,
            sign=self._identity.sign,
            verify=verify,
        )
        return ConsensusDriver(
            replica=replica,
            attestor=Attestor(
                AttestorConfig(validators=replica.validators, me=self._me),
                rows,
                sign=self._identity.sign,
                verify=verify,
            ),
            database=self._database,
            links=self._links,
            meters=self._meters,
            me=self._me,
            duties=Duties(self._decided, self._restored, self._propose, self._check),
        )

    def _on_message(self, peer: bytes, message: LinkMessage) -> None:
        if isinstance(message, ConsensusMessages):
            for data in message.messages:
                self._driver.received(peer, data)

    async def _decided(self, decided: Decided) -> None:
        # The commit certificate was made durable by the step that decided.
        operation = decided.operation
        if isinstance(operation, Join):
            waiting = self._waiting.pop((operation.member, operation.time_ms), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(time.monotonic())
        # As the daemon does, so that a restart knows where it stood.
        self._database.note(APPLIED, decided.sequence.to_bytes(8, "big"))

    async def _restored(self, restored: Restored) -> None:
        await self._database.put_meta(APPLIED, restored.ledger.sequence.to_bytes(8, "big"))

    async def _propose(self, wish: Propose) -> CheckpointRecord | None:
        raise AssertionError("there is no attestor")

    async def _check(self, record: CheckpointRecord) -> bool:
        raise AssertionError("there is no attestor")

    # --- commands ---------------------------------------------------------------------------------

    async def _answer_commands(self) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        commands: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "state": self._state,
            "latency": self._latency,
            "flood": self._flood,
            "roofline": self._roofline,
        }
        while line := await reader.readline():
            command = json.loads(line)
            print(json.dumps(await commands[command["do"]](command)), flush=True)

    async def _state(self, command: dict[str, Any]) -> dict[str, Any]:
        seen = self._driver.replica.inspect()
        return {
            "links": len(self._links.connected),
            "view": seen.view,
            "primary": seen.primary.hex(),
            "active": seen.active,
            "executed": seen.executed,
            "refused": self._driver.refused(),
        }

    async def _submit(self, origin: Origin) -> tuple[float, float]:
        """Submit one operation; when it was submitted and when it was durably committed here."""
        name, operation = origin.operation(self._validators.mesh_id)
        self._waiting[name] = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        self._driver.submit(operation)
        async with asyncio.timeout(PATIENCE_S):
            ended = await self._waiting[name]
        return began, ended

    async def _latency(self, command: dict[str, Any]) -> list[tuple[float, float]]:
        """One operation at a time."""
        return [await self._submit(self._origins[0]) for _ in range(command["count"])]

    async def _flood(self, command: dict[str, Any]) -> float:
        """Many at once, each origin one at a time; the seconds that all of them took."""
        each = int(command["count"]) // len(self._origins)

        async def insist(origin: Origin) -> None:
            for _ in range(each):
                await self._submit(origin)

        began = time.monotonic()
        await asyncio.gather(*map(insist, self._origins))
        seconds = time.monotonic() - began
        return seconds / (each * len(self._origins))

    async def _roofline(self, command: dict[str, Any]) -> dict[str, float]:
        """What a commit is made of, each alone, in milliseconds (medians)."""
        trips = [record.round_trip_ms for record in self._links.peers.values()]
        message = bytes(99)
        signature = self._identity.sign(message)
        fsyncs = []
        for number in range(PROBES):
            began = time.perf_counter()
            await self._database.put_meta("probe", number.to_bytes(8, "big"))
            fsyncs.append(time.perf_counter() - began)
        return {
            "round_trip_ms": _median(trips),
            "fsync_ms": 1e3 * _median(fsyncs),
            "sign_ms": 1e3 * _median(_times(lambda: self._identity.sign(message))),
            "verify_ms": 1e3 * _median(_times(lambda: verify(self._me, message, signature))),
        }


def _times(work: Callable[[], object]) -> list[float]:
    seconds = []
    for _ in range(PROBES):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return seconds


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    uvloop.run(Worker(Path(sys.argv[1]), int(sys.argv[2])).run())
