"""A cut gives the same to whoever works it out, however much of it they can hold at once."""

import asyncio
from pathlib import Path

import pytest

from shoal.compression.codec import encode
from shoal.gossip.book import DeltaBook
from shoal.gossip.delta import Delta, DeltaReference, make_delta
from shoal.gossip.parameters import EpochParameters, genesis_parameters
from shoal.gossip.settled import SettledState
from shoal.node import outcome, shared_model
from shoal.node.database import Database
from shoal.node.outcome import Coming, work_out
from shoal.node.parameters import MeshParameters
from shoal.node.shared_model import SharedModel
from tests.gossip.builders import MESH, SCHEMA, hashed_anchor, hashed_delta
from tests.node.certified import keys

FOUR = keys("ABCD")
MEMBERS = [(key.id, 1000, 1000) for key in FOUR]
COMING = Coming(MEMBERS, 2.0, 256, normalise_steps=False, trust=True)
SETTLED = SettledState.genesis(
    genesis_parameters(MEMBERS, SCHEMA, kept_per_chunk=256, alpha=1.0), staleness=2
)


def deltas() -> list[Delta]:
    """Two of each member."""
    return [
        make_delta(
            encode(hashed_delta(f"{number} of {place}")),
            mesh_id=MESH,
            sender=key.id,
            sequence=number,
            height=0,
            steps=5,
            tokens=500,
            sign=key.private.sign,
        )
        for place, key in enumerate(FOUR)
        for number in (1, 2)
    ]


def test_deltas_that_are_decoded_each_time_give_what_held_ones_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, anchor = DeltaBook(MESH, SETTLED), hashed_anchor("start")
    held = work_out(base, anchor, deltas(), COMING)
    monkeypatch.setattr(outcome, "HELD_BYTES_MAX", 0)
    again = work_out(base, anchor, deltas(), COMING)
    assert (again.root, again.parameters, again.settled) == (
        held.root,
        held.parameters,
        held.settled,
    )
    assert held.root != anchor.root() == hashed_anchor("start").root(), "it is a copy that moved"
    assert held.parameters.height == 1 and held.parameters.alpha > 1.0


def test_what_was_attested_is_not_worked_out_again_when_it_comes_back_certified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[Coming | EpochParameters] = []

    def counted(*given: object) -> outcome.Outcome:
        worked.append(given[-1])  # type: ignore[arg-type]
        return work_out(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(shared_model, "work_out", counted)

    async def story() -> None:
        database = Database(tmp_path / "node.db")
        model = SharedModel(
            me=FOUR[0].id,
            mesh_id=MESH,
            mesh=MeshParameters(),
            committed=hashed_anchor("start"),
            settled=SETTLED,
            database=database,
        )
        for delta in deltas():
            await model.add(delta)
        cut = [DeltaReference(d.header.sender, d.header.sequence, d.header.id) for d in deltas()]
        attested = await model.outcome(cut, COMING)
        assert await model.outcome(cut, COMING) is attested
        assert await model.outcome(cut, attested.parameters) is attested
        assert worked == [COMING]
        # Half of it, or under other parameters, is another thing.
        assert (await model.outcome(cut[:4], COMING)).root != attested.root
        other = COMING._replace(clip_factor=3.0)
        assert (await model.outcome(cut, other)).parameters != attested.parameters
        assert worked == [COMING, COMING, other]
        await database.close()

    asyncio.run(story())
