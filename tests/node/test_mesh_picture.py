"""From what the nodes say of each other to one picture of the mesh, and to the news in it."""

import json
from collections.abc import Sequence

import pytest

from shoal.node.inspect_client import PeerReply
from shoal.node.mesh_picture import Answer, Picture, news, picture, verdict
from tests.node.fake_node import example_checkpoint, example_reply

IDS = [f"{digit}" * 64 for digit in "abcd"]


def answering(
    index: int,
    *,
    verdicts: Sequence[str] = ("alive",) * 4,
    heights: Sequence[int] = (1, 2),
    name: str = "",
) -> Answer:
    """Node `index` of four, and what it takes each for; one that it takes for dead has no link."""
    reply = example_reply(node=name or f"node{index}", node_id=IDS[index])
    del reply.peers[:], reply.checkpoints[:]
    reply.checkpoints.extend(example_checkpoint(height) for height in heights)
    for other, said in enumerate(verdicts):
        if other != index:
            reply.peers.append(
                PeerReply(
                    node_id=IDS[other],
                    state="unreachable" if said == "dead" else "connected",
                    liveness=said,
                    why="" if said == "alive" else "no answer for 2 s",
                    last_sequence=17,
                    committed_height=2,
                    pending_deltas=1,
                )
            )
    return Answer(reply, fresh=True)


def mesh(*answers: Answer) -> dict[str, Answer]:
    return {answer.reply.node_id: answer for answer in answers}


def drawn(answers: dict[str, Answer], home: str = "") -> Picture:
    """The picture, after it went through JSON, as the browser has it."""
    found: Picture = json.loads(json.dumps(picture(IDS, answers, home), allow_nan=False))
    return found


def test_four_that_answer_are_alive_and_linked_to_each_other() -> None:
    found = drawn(mesh(*(answering(index) for index in range(4))))
    assert [member["name"] for member in found["members"]] == ["node0", "node1", "node2", "node3"]
    assert {member["shown"] for member in found["members"]} == {"alive"}
    assert [link["up"] for link in found["links"]] == [True] * 6
    assert (found["height"], found["quorum"], found["view"], found["epoch"]) == (2, 3, 1, 2)
    # 3 pending at each, of which 3 are of the others: nothing of its own.
    assert [member["pending"] for member in found["members"]] == [1, 1, 1, 1]
    assert {member["held_by"] for member in found["members"]} == {4}
    assert found["bytes"][0] == {"kind": "delta", "sent": 4 * 1_234_567, "received": 12_000_000}


def test_who_is_killed_is_dead_and_its_last_words_count_for_nothing() -> None:
    said = ("alive", "alive", "alive", "dead")
    last_words = answering(3, verdicts=("dead", "dead", "dead", "alive")).reply
    answers = mesh(*(answering(index, verdicts=said) for index in range(3)))
    answers[IDS[3]] = Answer(last_words, fresh=False)
    found = drawn(answers)
    assert [member["shown"] for member in found["members"]] == ["alive"] * 3 + ["dead"]
    assert found["members"][3]["name"] == "node3", "it is still known by its name"
    assert found["members"][3]["why"] == "no answer for 2 s"
    assert sum(link["up"] for link in found["links"]) == 3
    assert found["answering"] == 3


@pytest.mark.parametrize(
    ("opinions", "answers", "expected"),
    [
        (["dead", "dead", "alive"], False, "dead"),
        (["dead", "alive", "alive"], True, "suspect"),
        (["dead", "alive"], True, "suspect"),
        (["suspect", "alive", "alive"], True, "suspect"),
        (["alive", "alive"], False, "alive"),
        (["", ""], True, "alive"),
        ([], False, "unknown"),
    ],
)
def test_most_have_to_say_that_it_is_dead_and_one_doubt_is_shown(
    opinions: list[str], answers: bool, expected: str
) -> None:
    assert verdict(opinions, answers=answers) == expected


def test_one_height_less_is_normal_and_two_are_behind() -> None:
    ahead, late, lost = (answering(i, heights=h) for i, h in enumerate((range(1, 6), (4, 5), (1,))))
    late.reply.checkpoints[1].materialised = False
    shown = {m["name"]: (m["shown"], m["words"]) for m in drawn(mesh(ahead, late, lost))["members"]}
    assert shown["node1"] == ("alive", "alive")
    assert shown["node2"] == ("behind", "3 checkpoints behind")


def test_roots_that_differ_are_counted_and_told() -> None:
    one, other = answering(0), answering(1)
    other.reply.checkpoints[1].root = "f" * 64
    found = drawn(mesh(one, other))
    assert [(each["height"], each["roots"]) for each in found["checkpoints"]] == [(2, 2), (1, 1)]
    assert ("bad", "the roots of checkpoint 2 differ") in news(drawn(mesh(one)), found)


def test_the_signers_of_a_checkpoint_are_named() -> None:
    reply = answering(0).reply
    reply.checkpoints[1].signers.extend(IDS[:3])
    assert drawn(mesh(Answer(reply, fresh=True)))["checkpoints"][0]["signers"] == IDS[:3]


def test_what_a_peer_sends_is_short_printable_and_a_number_where_one_is_due() -> None:
    evil = answering(0, name="\x1b[2J<script>\u202e\n" * 1000)
    evil.reply.peers[0].liveness = "dead"
    evil.reply.peers[0].why = "<img src=x onerror=alert(1)>" * 100
    evil.reply.training.loss = float("nan")
    evil.reply.checkpoints[0].held_out_loss = float("inf")
    members = drawn(mesh(evil))["members"]
    first = next(member for member in members if member["id"] == IDS[0])
    assert len(first["name"]) == 64 and first["name"].isprintable()
    assert first["loss"] == 0.0
    assert max(len(member["why"]) for member in members) == 200


def test_nobody_answers_at_all() -> None:
    assert drawn({}) == {"trouble": "no node answers"}
    assert drawn({IDS[0]: Answer(answering(0).reply, fresh=False)}) == {
        "trouble": "no node answers"
    }


def test_the_news_are_deaths_checkpoints_views_and_newcomers() -> None:
    before = picture(IDS[:3], mesh(answering(0), answering(1)))
    later = answering(0, verdicts=("alive", "dead", "alive", "alive"), heights=(1, 2, 3))
    later.reply.consensus.view = 2
    killed = Answer(answering(1).reply, fresh=False)
    after = picture(IDS, mesh(later, killed))
    assert list(news(before, after)) == [
        ("plain", "dddddddd is a member"),
        ("bad", "node1 is dead: no answer for 2 s"),
        ("good", "checkpoint 3, 3 of 4 signed, root 000000000000"),
        ("warn", "view 2 after 1"),
    ]
    assert not list(news(after, after))
    assert not list(news({"trouble": "no node answers"}, after)), "then there is nothing to compare"


def test_one_member_cannot_make_up_a_height_or_an_epoch_for_all() -> None:
    liar = answering(0, heights=(1, 2, 900))
    liar.reply.consensus.epoch = 77
    answers = mesh(liar, answering(1), answering(2))
    found = drawn(answers, home=IDS[1])
    assert (found["height"], found["epoch"]) == (2, 2)
    assert {member["shown"] for member in found["members"][1:3]} == {"alive"}
    assert found["checkpoints"][0]["height"] == 2
