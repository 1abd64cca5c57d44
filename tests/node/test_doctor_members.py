"""What members say of a node: asked for real, over TLS, with clocks and versions that differ."""

import time

import pytest

from shoal.node import look_back
from shoal.node.certificates import issue_leaf
from shoal.node.config import NodeSettings, Settings
from shoal.node.doctor_findings import Finding, Verdict
from shoal.node.doctor_network import ask_member, members_to_ask
from shoal.node.doctor_peers import (
    PeerFacts,
    judge_advertised,
    judge_clock,
    judge_peers,
    judge_protocol,
)
from shoal.node.look import Sight
from shoal.node.look_wire import LookedBack
from shoal.node.wire import PROTOCOL_VERSION
from tests.abuse.tls_table import MEMBER, OTHER, OWN, STRANGER, Place, leaf_of, place, pretender
from tests.node.fake_node import example_reply
from tests.node.played import played_plainly

HOUR_S = 3600.0
PROBLEM, WARNING, FINE, NOT_CHECKED = (
    Verdict.PROBLEM,
    Verdict.WARNING,
    Verdict.FINE,
    Verdict.NOT_CHECKED,
)


def looked(outcome: str = "answers", address: str = "a:1", protocol: int = 4) -> LookedBack:
    return LookedBack(outcome, address, protocol, "0.1.0", 0.0, 0.0)


def peer(number: int, reply: LookedBack | None = None, **facts: object) -> PeerFacts:
    return PeerFacts(bytes([number]) * 32, "b:1", reply or looked(), **facts)  # type: ignore[arg-type]


async def asked(here: Place, *, skew_s: float = 0.0) -> PeerFacts:
    """What MEMBER, whose clock is wrong by so much, hears from the place."""
    return await ask_member(OWN.node_id, here.address, MEMBER, lambda: time.time() + skew_s)


@pytest.mark.parametrize(
    ("skew_s", "verdict", "words"),
    [
        (0.0, FINE, ""),
        (6.0, WARNING, "6.0 s ahead of"),
        (-6.0, WARNING, "6.0 s behind"),
        (-2 * HOUR_S, PROBLEM, "takes their certificates for not valid yet"),
        (2 * HOUR_S, PROBLEM, "they take its certificate for not valid yet"),
        (8.5 * HOUR_S, PROBLEM, "takes their certificates for expired"),
    ],
)
@played_plainly
async def test_a_wrong_clock_is_measured_at_a_member(
    skew_s: float, verdict: Verdict, words: str
) -> None:
    async with place() as here:
        facts = await asked(here, skew_s=skew_s)
        assert facts.looked is not None, "a wrong clock here does not keep it from being measured"
        found = judge_clock([facts])
        assert found.verdict is verdict
        assert words in found.what


@pytest.mark.parametrize(
    ("made_at_s", "words"), [(3 * HOUR_S, "3.0 h or more behind"), (-24 * HOUR_S, "8.0 h or more")]
)
@played_plainly
async def test_a_clock_that_keeps_everybody_away_is_told_by_their_leaves(
    made_at_s: float, words: str
) -> None:
    """Where TLS itself refuses, the dates on the leaf of a member are what is left."""
    async with pretender(leaf_of(OTHER, at=time.time() + made_at_s)) as address:
        facts = await ask_member(OTHER.node_id, address, MEMBER, time.time)
    assert facts.looked is None and facts.sight is Sight.OUT_OF_DATE
    found = judge_clock([facts])
    assert found.verdict is PROBLEM
    assert words in found.what


def test_one_wild_clock_among_the_others_is_outvoted() -> None:
    facts = [peer(1, ahead_s=0.1), peer(2, ahead_s=-0.2), peer(3, ahead_s=1e6)]
    assert judge_clock(facts).verdict is FINE
    assert judge_clock([]).verdict is NOT_CHECKED


@played_plainly
async def test_members_of_other_versions_are_named_with_what_to_upgrade(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with place() as here:
        same = await asked(here)
        monkeypatch.setattr(look_back, "PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
        newer = await asked(here)
        monkeypatch.setattr(look_back, "PROTOCOL_VERSION", PROTOCOL_VERSION - 1)
        older = await asked(here)
    async with pretender(leaf_of(OTHER)) as address:
        # It is believed, and has no such service: a Shoal from before it.
        ancient = await ask_member(OTHER.node_id, address, MEMBER, time.time)

    def judged(*peers: PeerFacts, refused: tuple[tuple[str, str], ...] = ()) -> Finding:
        return judge_protocol(peers, PROTOCOL_VERSION, "0.1.0", refused)

    assert judged(same).verdict is FINE
    assert judged().verdict is NOT_CHECKED
    assert (judged(newer).verdict, judged(newer).fix) == (PROBLEM, "upgrade Shoal on this node")
    assert f"has {PROTOCOL_VERSION + 1}" in judged(newer).what
    assert OWN.node_id.hex()[:8] in judged(older).fix
    assert OTHER.node_id.hex()[:8] in judged(ancient).fix
    assert judged(same, same, older).verdict is WARNING, "the mesh goes on without that one"
    refused = judged(same, refused=(("0badcafe", "wrong-protocol: version 3"),))
    assert "0badcafe was refused (wrong-protocol: version 3)" in refused.what


@played_plainly
async def test_why_a_member_does_not_answer_is_said() -> None:
    async with place() as here, pretender(leaf_of(STRANGER)) as strangers:
        cases = {
            "nothing listens there": await ask_member(
                OTHER.node_id, "127.0.0.1:1", MEMBER, time.time
            ),
            "somebody else answers": await ask_member(OTHER.node_id, strangers, MEMBER, time.time),
            "cannot be looked up": await ask_member(
                OTHER.node_id, "nowhere.invalid:7400", MEMBER, time.time
            ),
            "it hangs up on this node": await ask_member(
                OWN.node_id, here.address, STRANGER, time.time
            ),
        }
        good = await asked(here)
    for words, facts in cases.items():
        found = judge_peers([facts], alone=False, running=True)
        assert found.verdict is PROBLEM and words in found.what
        assert judge_peers([facts], alone=False, running=False).verdict is WARNING
        assert judge_peers([facts, good], alone=False, running=True).verdict is WARNING
    assert judge_peers([good], alone=False, running=True).verdict is FINE
    assert judge_peers([], alone=True, running=True).verdict is FINE
    assert judge_peers([], alone=False, running=True).verdict is NOT_CHECKED


def test_an_address_is_judged_by_those_who_looked_at_it() -> None:
    def judged(*outcomes: str, running: bool = True, listed: str = "a:1") -> Finding:
        peers = [peer(i, looked(each, listed)) for i, each in enumerate(outcomes)]
        return judge_advertised(peers, "a:1", running=running)

    assert judged("answers", "answers").verdict is FINE
    assert judged("refused", "silent").verdict is PROBLEM
    assert judged("answers", "silent").verdict is WARNING
    assert "1 of 2 members that looked reach a:1" in judged("answers", "silent").what
    assert judged("not-now").verdict is NOT_CHECKED
    assert judged("answers", "not-now").verdict is FINE
    assert judged().verdict is NOT_CHECKED
    assert judged("refused", running=False).verdict is NOT_CHECKED
    assert "knows this node as c:1" in judged("answers", listed="c:1").what
    assert judged("not-listed", listed="").verdict is PROBLEM
    assert "a-word-of-tomorrow" in judged("a-word-of-tomorrow").what
    loopback = judge_advertised(
        [peer(1, looked("refused", "127.0.0.1:7400"))], "127.0.0.1:7400", running=True
    )
    assert "an address that other machines reach" in loopback.fix


def test_whom_to_ask_comes_from_the_running_node_else_from_the_directory() -> None:
    me, other, founder = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
    settings = Settings(node=NodeSettings(peers=[f"{other.hex()}@c:2"]))
    founders = [(me, "a:1"), (founder, "b:1")]
    assert members_to_ask(me, None, settings, founders) == [(other, "c:2"), (founder, "b:1")]
    status = example_reply()
    assert [address for _, address in members_to_ask(me, status, settings, founders)] == [
        "127.0.0.1:7401",
        "127.0.0.1:7402",
    ], "who is connected comes first"


def test_a_leaf_for_asking_counts_for_members_far_from_this_clock() -> None:
    """It has to: else a clock that is two hours ahead could not be measured."""
    leaf = issue_leaf(MEMBER, time.time() - 8 * HOUR_S)
    assert leaf.not_after - time.time() > 14 * HOUR_S
