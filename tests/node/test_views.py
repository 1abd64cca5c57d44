"""What `shoal status` says must be what the node said."""

import io
import json

import pytest
from rich.console import Console, RenderableType

from shoal.node.demo_view import Row, mesh_facts, progress_line, progress_view
from shoal.node.inspect_client import as_plain
from shoal.node.views import checkpoints_table, duration, peers_table, size, status_view
from tests.node.fake_node import example_checkpoint, example_reply


def text_of(view: RenderableType) -> str:
    output = io.StringIO()
    Console(file=output, width=140, no_color=True).print(view)
    return output.getvalue()


def row_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(start))


def test_status_shows_every_part_of_the_reply() -> None:
    text = text_of(status_view(example_reply()))
    for part in (
        "node0",
        "validator",
        "round 17 of 32",
        "loss 2.513",
        "3 deltas pending",
        "view 1 active",
        "quorum 3",
        "tolerates 1",
        "connected",
        "connection refused",
        "bad-signature 2, stale 1",
        "1.2 MB",
        "3.5 ms (99 %)",
        "350.0 MB",
    ):
        assert part in text


def test_what_an_operator_should_do_is_said_aloud() -> None:
    reply = example_reply()
    reply.warnings.append("make a backup")
    assert "make a backup" in text_of(status_view(reply))


def test_a_node_that_has_just_started_is_shown_without_inventing_anything() -> None:
    reply = type(example_reply())(node="fresh")
    text = text_of(status_view(reply))
    assert "no checkpoint has been committed yet" in text
    assert "no peers known" in text
    assert "rejected from peers: nothing" in text
    assert "loss -" in text


def test_who_is_out_and_by_whose_word_is_told_apart() -> None:
    reply = example_reply()
    assert "evicted" not in text_of(status_view(reply))
    for number, why in ((3, "evidence"), (4, "people"), (5, "harm")):
        reply.evicted.add(node_id=f"{number}{number}" * 32, why=why)
    reply.peers[1].strikes = 1
    text = text_of(status_view(reply))
    assert "evicted: 33333333, by evidence that proves itself" in text
    assert "evicted: 44444444, by decision of a quorum" in text
    assert "evicted: 55555555, by opinion of a quorum that measured harm" in text
    assert "spot checks: 22222222 has harmed the model, strikes: 1" in text


def test_a_failed_training_shows_its_reason() -> None:
    reply = example_reply()
    reply.training.state = "failed: CUDA is not available"
    assert "CUDA is not available" in text_of(status_view(reply))


def test_a_node_cannot_command_the_terminal_of_who_asks_it() -> None:
    reply = example_reply(node="\x1b[2Jnode", role="\x1b]0;title\x07")
    reply.training.state = reply.training.device = "\x1b[31m"
    reply.rejected["\x1b[1m"] = reply.sent_bytes["\x1b[1m"] = 1
    for peer in reply.peers:
        peer.node_id = peer.address = peer.state = peer.last_error = "\x1b[5m"
        peer.strikes = 1
    reply.evicted.add(node_id="\x1b[5m", why="\x1b[5m")
    reply.checkpoints[0].root = "\x1b[5m"
    assert "\x1b" not in text_of(status_view(reply))
    assert "\x1b" not in text_of(progress_view([Row("node0", reply)], rounds=1, elapsed_s=1))


def test_looking_at_the_bytes_does_not_change_the_reply() -> None:
    reply = example_reply()
    before = reply.SerializeToString(deterministic=True)
    text_of(status_view(reply))
    assert reply.SerializeToString(deterministic=True) == before


def test_a_checkpoint_that_was_not_rebuilt_here_says_so() -> None:
    rows = [example_checkpoint(1), example_checkpoint(2, materialised=False)]
    text = text_of(checkpoints_table(rows, total=9))
    assert "the last 2 of 9" in text
    assert "equal" in row_of(text, "1 ")
    assert "not yet" in row_of(text, "2 ")


def test_connected_peers_come_first() -> None:
    text = text_of(peers_table(list(reversed(example_reply().peers))))
    assert text.index("127.0.0.1:7401") < text.index("127.0.0.1:7402")
    assert "1 of 2 connected" in text


def test_json_has_every_field_with_numbers_as_numbers() -> None:
    reply = example_reply()
    reply.training.loss = float("nan")
    plain = json.loads(json.dumps(as_plain(reply), allow_nan=False))
    assert set(plain) == {field.name for field in reply.DESCRIPTOR.fields}
    assert plain["training"]["round"] == 17
    assert plain["training"]["loss"] is None
    assert plain["checkpoints"][1]["height"] == 2
    assert plain["rejected"] == {"bad-signature": 2, "stale": 1}
    assert plain["warnings"] == []


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (3e12, "3.0 TB")],
)
def test_sizes_are_in_the_unit_that_a_person_would_choose(count: float, expected: str) -> None:
    assert size(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(12.9, "12 s"), (185, "3 min 05 s"), (3720, "1 h 02 min")]
)
def test_durations_read_like_speech(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_the_demo_shows_a_row_for_each_node_whatever_its_state() -> None:
    finished = example_reply(node="node1")
    finished.training.state = "finished"
    rows = [
        Row(name="node0", reply=example_reply()),
        Row(name="node1", reply=finished),
        Row(name="node2", reply=None),
        Row(name="node3", reply=example_reply(), death="signal 9"),
    ]
    text = text_of(progress_view(rows, rounds=32, elapsed_s=61))
    assert "17/32" in row_of(text, "node0")
    assert "finished" in row_of(text, "node1")
    assert "starting" in row_of(text, "node2")
    assert "died: signal 9" in row_of(text, "node3")
    assert "all 2 roots equal" in text


def test_the_demo_says_when_two_nodes_do_not_hold_the_same_model() -> None:
    other = example_reply()
    other.checkpoints[1].root = "f" * 64
    rows = [Row(name="node0", reply=example_reply()), Row(name="node1", reply=other)]
    assert "ROOTS DIFFER at checkpoint 2" in mesh_facts(rows, elapsed_s=1)


def test_without_a_terminal_the_demo_is_one_line() -> None:
    rows = [Row(name="node0", reply=example_reply()), Row(name="node1", reply=None)]
    line = progress_line(rows, rounds=32, elapsed_s=35)
    assert line == (
        "  35 s  rounds 17 - of 32  loss 2.513  checkpoint 2 (3 signatures)  sent 1.2 MB"
    )
    assert "starting 1 nodes" in progress_line([rows[1]], rounds=32, elapsed_s=1)
