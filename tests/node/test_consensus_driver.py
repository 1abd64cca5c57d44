"""The driver's one duty: nothing is said before what it rests on is durable, however many steps
share a transaction."""

import asyncio
from typing import Any

from shoal.consensus.certificate import Certificate
from shoal.consensus.effects import Broadcast, Decided, Effect, Persist, Received
from shoal.consensus.ledger import Executed
from shoal.consensus.records import Null
from shoal.consensus.validators import Validators
from shoal.consensus.votes import VoteKind
from shoal.node.consensus_driver import INBOX_BYTES_MAX, ConsensusDriver, Duties
from shoal.node.meters import Meters

PROOF = Certificate(VoteKind.COMMIT, 0, 0, 1, bytes(32), (0,), (bytes(64),))
DECIDED = Decided(1, Null(), b"", PROOF, Executed())


class Diary:
    """Stands in for replica, database and links, and writes down what they are asked."""

    connected: tuple[bytes, ...] = ()
    validators = Validators(bytes(32), 0, (bytes(32),))

    def __init__(self, steps: list[list[Effect]]) -> None:
        self.steps = iter(steps)
        self.lines: list[str] = []

    refusal = None

    def step(self, now_ms: int, event: Received) -> list[Effect]:
        self.lines.append(f"step {event.data.decode()}")
        return next(self.steps)

    async def persist(self, rows: Any) -> None:
        self.lines.append("begin " + " ".join(sorted(key for key, _ in rows)))
        await asyncio.sleep(0)
        self.lines.append("durable")

    def send_all(self, peers: Any, message: Any) -> None:
        self.lines += [f"say {data.decode()}" for data in message.messages]

    async def decided(self, decided: Decided) -> None:
        self.lines.append(f"decided {decided.sequence}")


def diary_of(steps: list[list[Effect]]) -> list[str]:
    """What happens when a message for each step waits before the first one is looked at."""
    diary: Any = Diary(steps)

    async def story() -> None:
        driver = ConsensusDriver(
            replica=diary,
            attestor=diary,
            database=diary,
            links=diary,
            meters=Meters(),
            me=b"",
            duties=Duties(diary.decided, diary.decided, diary.decided, diary.decided),
        )
        for number in range(len(steps)):
            driver.received(b"peer", str(number).encode())
        work = asyncio.create_task(driver.run())
        await asyncio.sleep(0.05)
        work.cancel()

    asyncio.run(story())
    lines: list[str] = diary.lines
    return lines


def test_steps_that_wait_together_share_a_transaction_before_any_of_them_speaks() -> None:
    assert diary_of(
        [
            [Persist((("a", b"1"),)), Broadcast(b"A")],
            [Broadcast(b"B")],
            [Persist((("a", b"2"), ("c", None))), Broadcast(b"C")],
        ]
    ) == ["step 0", "step 1", "step 2", "begin a c", "durable", "say A", "say B", "say C"]


def test_a_step_that_writes_nothing_waits_for_no_disk() -> None:
    assert diary_of([[Broadcast(b"A")]]) == ["step 0", "say A"]


def test_a_decision_is_dealt_with_before_the_next_step() -> None:
    assert diary_of(
        [
            [Persist((("a", b"1"),)), DECIDED],
            [Persist((("b", b"1"),)), Broadcast(b"B")],
        ]
    ) == ["step 0", "begin a", "durable", "decided 1", "step 1", "begin b", "durable", "say B"]


def test_one_sender_fills_its_own_share_of_the_inbox_and_no_more() -> None:
    diary: Any = Diary([])
    meters = Meters()

    async def story() -> None:
        driver = ConsensusDriver(
            replica=diary,
            attestor=diary,
            database=diary,
            links=diary,
            meters=meters,
            me=b"",
            duties=Duties(diary.decided, diary.decided, diary.decided, diary.decided),
        )
        for _ in range(100):
            driver.received(b"flooder", bytes(1 << 20))
        driver.received(b"honest", b"a vote")
        held = INBOX_BYTES_MAX >> 20
        assert meters.rejected["inbox-full"] == 100 - held
        assert driver._inbox.qsize() == held + 1

    asyncio.run(story())
