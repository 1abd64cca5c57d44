"""Real nodes in one loop: one that ends is noticed at once, one that stands still is not dead, and
what a person asks is answered with reasons."""

import asyncio
import json
from pathlib import Path
from statistics import median

from shoal.gossip.liveness import Evidence, Opinion, State
from shoal.node.dialling import targets
from shoal.node.failure_detection import why
from shoal.node.inspect_client import as_plain, fetch_explanation
from tests.node.mesh import RunningNode, found_mesh, running, until, until_rebuilt


def states(node: RunningNode) -> list[State]:
    detection = node.node.state.detection
    return [detection.state(member) for member in sorted(detection.opinions())]


def all_alive(nodes: list[RunningNode]) -> bool:
    return all(set(states(node)) == {State.ALIVE} for node in nodes)


def test_a_node_that_ends_is_dead_in_a_second_and_back_when_it_starts(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path / "mesh"), rounds=0) as nodes:
            await until(lambda: all_alive(nodes), nodes)
            # Enough probes that deadlines are learned.
            await asyncio.sleep(5)
            victim, survivors = nodes[3], nodes[:3]
            loop = asyncio.get_running_loop()
            me = victim.node.state.node_id
            await victim.stop()
            seen: dict[int, float] = {}
            since = loop.time()

            def noticed() -> bool:
                for index, node in enumerate(survivors):
                    if node.node.state.detection.state(me) is State.DEAD:
                        seen.setdefault(index, loop.time() - since)
                return len(seen) == 3

            await until(noticed, survivors, seconds=20)
            assert median(seen.values()) < 3.0, "loose; the benchmark is strict"
            reply = survivors[0].node.status()
            peer = next(each for each in reply.peers if each.node_id == me.hex())
            assert peer.liveness == "dead" and "its link ended" in peer.why
            assert len(peer.accusers) == 2 and "2 needed" in peer.why

            await victim.start()
            await until(lambda: all_alive(nodes), nodes, seconds=20)

    asyncio.run(story())


def test_explain_says_who_was_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path / "mesh"), rounds=6) as nodes:
            await until_rebuilt(nodes, 2)
            address = nodes[0].settings.node.inspect_listen
            reply = await fetch_explanation(address, 1)
            assert reply.known and reply.committed and reply.height == 1
            assert reply.quorum == 3 and reply.rounds_wanted == 2
            assert len(reply.members) == 4
            included = sum(member.included for member in reply.members)
            shown = {c.height: c.deltas for c in nodes[0].node.status().checkpoints}
            assert included == shown[1]
            json.dumps(as_plain(reply), allow_nan=False)
            assert not (await fetch_explanation(address, 10**9)).committed
            assert (await fetch_explanation(address, 2)).known

    asyncio.run(story())


def test_a_reason_names_the_probe_the_lateness_and_who_confirms() -> None:
    one, two = b"\x01" * 32, b"\x02" * 32
    opinion = Opinion(
        member=b"\x03" * 32,
        state=State.SUSPECT,
        evidence=Evidence.SILENT,
        silent_s=2.34,
        deadline_s=0.25,
        relays=((one, "no"), (two, "silent")),
        accusers=(one,),
        needed=2,
        timeout_s=3.5,
        note="too few others confirm it",
    )
    text = why(opinion)
    for part in (
        "no answer for 2.3 s, a probe is given 250 ms",
        "01010101 no, 02020202 silent",
        "confirmed by 01010101 of 2 needed",
        "dead after 3.5 s",
        "too few others confirm it",
    ):
        assert part in text
    assert why(Opinion(b"", State.ALIVE)) == ""


def test_places_of_dead_neighbours_are_filled() -> None:
    from shoal.consensus.members import Member

    names = [index.to_bytes(32, "big") for index in range(40)]
    members = {name: Member(f"10.0.0.{int(name[-1])}:1", 1, 1000) for name in names}
    me, mesh_id = names[0], b"m" * 32
    whole = targets(members, names[:4], (), me=me, mesh_id=mesh_id, degree=8)
    dead = set(sorted(member for member in whole.values() if member is not None)[-3:])
    now = targets(members, names[:4], dead, me=me, mesh_id=mesh_id, degree=8)
    assert whole.items() <= now.items(), "the dead are dialled too, to see them return"
    living = [member for member in now.values() if member not in dead]
    assert len(living) >= len(whole) - 1
