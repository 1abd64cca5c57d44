"""Which mesh parameters can change and how: bytes that anybody may read twice and get the same."""

import json
from dataclasses import asdict, replace
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.consensus.epochs import EpochChain, EpochRecord, first_epoch
from shoal.node.errors import PeerError, UserError
from shoal.node.mesh_parameters import (
    CHANGEABLE,
    FIXED,
    ParametersInForce,
    change_to,
    decode,
    encode,
    follow,
)
from shoal.node.parameter_change import (
    MeshAnswer,
    answer_lines,
    as_plain,
    changed,
    parse_settings,
)
from shoal.node.parameters import MeshParameters
from shoal.node.verify_parameters import first_parameters, parameters_after

GENESIS = MeshParameters(alpha=1.7, staleness=3)
# Bytes that put nothing in force: unreadable, of another version, or out of range.
BEFORE_BETA = pack(">BIHd", 3, 8, 8, 0.06)
NOTHING = (
    b"\x00",
    b"parameters",
    encode(GENESIS)[:-1],
    encode(GENESIS) + b"\x00",
    b"\x01" + encode(GENESIS)[1:],
    b"\x02" + encode(GENESIS)[1:],
    pack(">BIHd", 3, 100_001, 8, 0.06) + encode(GENESIS)[15:],
    pack(">BIHd", 3, 8, 8, 5000.0) + encode(GENESIS)[15:],
    BEFORE_BETA + pack(">d", float("nan")) + encode(GENESIS)[23:],
    BEFORE_BETA + pack(">d", float("inf")) + encode(GENESIS)[23:],
    encode(GENESIS)[:-10] + b"\xff" * 8 + b"\x00\x01",
    encode(GENESIS)[:-1] + b"\x02",
    encode(GENESIS)[:-2] + b"\x02\x01",
)


def test_every_parameter_is_either_changeable_or_fixed_for_a_reason() -> None:
    assert sorted([*CHANGEABLE, *FIXED]) == sorted(asdict(MeshParameters()))


def test_what_is_written_is_what_is_read_and_the_fixed_ones_stay() -> None:
    wish = replace(MeshParameters(), clip_factor=3.5, budget=0.25, schedule_tokens=2**62)
    read = decode(encode(wish), GENESIS)
    assert read == replace(wish, alpha=1.7, staleness=3)
    assert decode(b"", GENESIS) == GENESIS


@pytest.mark.parametrize("data", NOTHING, ids=range(len(NOTHING)))
def test_bytes_that_say_nothing_change_nothing(data: bytes) -> None:
    with pytest.raises(PeerError, match="bad-parameters"):
        decode(data, GENESIS)
    wish = replace(GENESIS, clip_factor=3.0)
    assert follow(GENESIS, [data]) == GENESIS
    assert follow(GENESIS, [encode(wish), data, data]) == wish
    assert follow(GENESIS, [encode(wish), data, b""]) == GENESIS


sound = st.builds(
    MeshParameters,
    local_steps=st.integers(0, 100_000),
    rounds_per_checkpoint=st.integers(1, 1024),
    budget=st.floats(0.0001, 1000.0),
    beta=st.floats(0.001, 1.0),
    start_share=st.floats(0.0, 1.0),
    clip_factor=st.floats(0.1, 1e6),
    learning_rate=st.floats(1e-9, 10.0),
    warmup_tokens=st.integers(0, 2**62),
    schedule_tokens=st.integers(1, 2**62),
    normalise_steps=st.booleans(),
    trust=st.booleans(),
    evict_harmful=st.booleans(),
)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    data = bytearray(encode(draw(sound)))
    data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@given(genesis=sound, records=st.lists(sound.map(encode) | spoilt() | st.binary(max_size=70)))
@settings(deadline=None)
def test_the_node_and_the_verifier_read_any_chain_alike(
    genesis: MeshParameters, records: list[bytes]
) -> None:
    first = first_parameters(json.loads(json.dumps(asdict(genesis))))
    theirs = first
    for record in records:
        theirs = parameters_after(theirs, record, first)
    ours = asdict(follow(genesis, records))
    assert dict(theirs) == {name: ours[name] for name in CHANGEABLE}


def test_the_verifier_reads_the_same_genesis() -> None:
    assert dict(first_parameters({})) == {k: asdict(MeshParameters())[k] for k in CHANGEABLE}
    for wrong in ({"beta": 0}, {"local_steps": 1.5}, {"clip_factor": 10**400}, {"beta": True},
                  {"normalise_steps": 1}, {"normalise_steps": "no"}):  # fmt: skip
        with pytest.raises(ValueError, match="is "):
            first_parameters(wrong)
        assert replace(GENESIS, **wrong).problems()


def test_each_epoch_has_its_own() -> None:
    mesh_id, wish = bytes(32), replace(GENESIS, beta=0.5)
    chain = EpochChain(first_epoch(mesh_id, [b"a" * 32]), 8)
    for number, data in enumerate((b"", encode(wish), b"nonsense"), 1):
        chain._records.append(  # a record is taken as proved, whoever proved it
            EpochRecord(
                mesh_id=mesh_id,
                number=number,
                parent=bytes(32),
                start=8 * number,
                keys=(b"a" * 32,),
                parameters=data,
            )
        )
    now = 0
    mesh = ParametersInForce(GENESIS, epochs=lambda: chain, epoch=lambda: now)
    seen = []
    for now in range(4):  # noqa: B007 - the lambda above reads it
        seen.append(mesh.now())
    assert seen == [GENESIS, GENESIS, wish, wish]


# --- what a person writes -------------------------------------------------------------------------


def test_a_wish_is_read_against_what_is_in_force() -> None:
    words = ["clip_factor = 3", "local_steps=16", "normalise_steps=true"]
    wish = changed(GENESIS, parse_settings(words))
    assert wish == replace(GENESIS, clip_factor=3.0, local_steps=16, normalise_steps=True)
    assert decode(change_to(wish).parameters, GENESIS) == wish


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["clip_factor"], "write key=value"),
        (["clip_factor="], "write key=value"),
        (["clip_facto=3"], "did you mean clip_factor"),
        (["clip_factor=much"], "write a number"),
        (["clip_factor=true"], "write a number"),
        (["clip_factor=nan"], "must be from 0.1"),
        (["clip_factor=1" + "0" * 400], "must be from 0.1"),
        (["local_steps=1.5"], "write a whole number"),
        (["local_steps=100001"], "must be from 0 to 100000"),
        (["budget=0"], "must be from 0.0001 to 1000"),
        (["normalise_steps=yes"], "write true or false"),
        (["normalise_steps=1"], "write true or false"),
        (["normalise_steps=false"], "nothing would change"),
        (["alpha=2"], "fixed when the mesh was made"),
        (["staleness=2"], "fixed when the mesh was made"),
        (["clip_factor=2.0"], "nothing would change"),
    ],
)
def test_a_bad_wish_is_refused_in_one_line(words: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as refusal:
        changed(GENESIS, parse_settings(words))
    assert "\n" not in str(refusal.value)


def test_a_person_sees_what_holds_what_comes_and_what_never_changes() -> None:
    answer = MeshAnswer(4, 4, GENESIS, replace(GENESIS, clip_factor=3.0))
    text = "\n".join(answer_lines(answer))
    assert "epoch 4" in text and "decided: 2.0 -> 3.0" in text
    assert text.count("fixed: ") == len(FIXED)
    plain = json.loads(json.dumps(as_plain(answer)))
    assert plain["in_force"]["clip_factor"] == 2.0
    assert plain["decided"]["clip_factor"] == 3.0
    assert as_plain(MeshAnswer(4, 4, GENESIS, None))["decided"] is None


def test_a_person_sees_what_follows_from_the_dial_among_so_many() -> None:
    answer = MeshAnswer(0, 4, replace(GENESIS, budget=0.008), None)
    lines = {line.split()[0]: line for line in answer_lines(answer)[1:]}
    assert lines["local_steps"].endswith("0  now 10")
    assert lines["rounds_per_checkpoint"].endswith("8  now 4")
    assert lines["start_share"].endswith("0.3  now 0.4")
    assert "now" not in lines["clip_factor"]
    assert as_plain(answer)["worked_out"]["local_steps"] == 10
    assert as_plain(answer)["in_force"]["local_steps"] == 0
