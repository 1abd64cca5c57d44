"""Invitations as text and as a file, their numbers, and what is said to who issues or uses one."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.consensus.invitations import MAX_HINT_BYTES, MAX_INVITATION_BYTES, InvitedRole
from shoal.node.errors import NotAdmittedError, UserError
from shoal.node.identity import Identity
from shoal.node.invitations import (
    INVITATION_NAME,
    LINE_BYTES_MAX,
    LINE_START,
    as_line,
    expiry_text,
    forget_invitation,
    is_expired,
    keep_invitation,
    kept_invitation,
    parse_line,
    require_current,
    sign_invitation,
)
from shoal.node.inviting import (
    NUMBER_NAME,
    as_plain,
    explanation,
    make_invitation,
    next_number,
    parse_ttl,
)
from shoal.proto.inspect_pb2 import Consensus, StatusReply
from tests.node.inviting import invitation_of_nobody

GOOD = invitation_of_nobody()
LINE = as_line(GOOD)


def test_a_line_comes_back_as_it_went_whatever_a_mail_client_does_to_it() -> None:
    assert LINE.startswith(LINE_START) and LINE.isprintable() and " " not in LINE
    for text in (LINE, f"  {LINE}\r\n", LINE[:80] + "\n" + LINE[80:160] + "\r\n\t" + LINE[160:]):
        assert parse_line(text) == GOOD


def test_the_longest_line_is_read() -> None:
    longest = invitation_of_nobody(hint="a" * MAX_HINT_BYTES)
    assert len(longest.to_bytes()) == MAX_INVITATION_BYTES
    line = as_line(longest)
    assert len(line) < 600
    assert parse_line("\n".join(line)[:LINE_BYTES_MAX]) == longest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "begins with shoal1"),
        ("shoal2." + LINE[7:], "begins with shoal1"),
        (LINE[7:], "begins with shoal1"),
        (LINE[:-1], "cut off"),
        (LINE[:100], "cut off"),
        (LINE + "AAAA", "trailing-bytes"),
        (LINE + "=", "not base64"),
        (LINE.replace("A", "+", 1), "not base64"),
        (LINE[:20] + "é" + LINE[21:], "not base64"),
        (LINE * 5, "too long"),
        ("shoal1." + " " * 100_000, "too long"),
    ],
    # Not the lines: those are others each time.
    ids=range(11),
)
def test_a_wrong_line_gets_one_clear_line(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        parse_line(text)
    assert "\n" not in str(caught.value)


@given(st.integers(7, len(LINE) - 1), st.sampled_from("AZaz09-_"))
def test_any_changed_letter_is_noticed(at: int, letter: str) -> None:
    changed = LINE[:at] + letter + LINE[at + 1 :]
    if changed != LINE:
        with pytest.raises(UserError):
            parse_line(changed)


def test_one_that_another_key_signed_is_refused() -> None:
    other = Identity.generate()
    forged = replace(GOOD, signature=other.sign(GOOD.signed_bytes()))
    with pytest.raises(UserError, match="not signed by the member that it names"):
        parse_line(as_line(forged))


def test_a_kept_one_is_for_its_owner_only_and_goes_when_it_has_served(tmp_path: Path) -> None:
    assert kept_invitation(tmp_path) is None
    path = tmp_path / INVITATION_NAME
    left = path.with_name("invitation.new")
    left.touch(mode=0o644)
    keep_invitation(tmp_path, GOOD)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not left.exists()
    assert kept_invitation(tmp_path) == GOOD
    path.write_text(LINE[:50])
    with pytest.raises(UserError, match=f"{path}: .*copy the whole line"):
        kept_invitation(tmp_path)
    path.write_bytes(b"\xff" * 100_000)
    with pytest.raises(UserError, match="too long"):
        kept_invitation(tmp_path)
    forget_invitation(tmp_path)
    forget_invitation(tmp_path)
    assert not path.exists()


def test_it_is_good_up_to_its_last_millisecond() -> None:
    until = replace(GOOD, expires_ms=1_000_000)
    assert not is_expired(until, 1_000_000)
    assert is_expired(until, 1_000_001)
    require_current(until, 1_000_000)
    with pytest.raises(NotAdmittedError, match="good until 1970-01-01 00:16:40 UTC"):
        require_current(until, 1_000_001)
    assert expiry_text(replace(GOOD, expires_ms=2**64 - 1))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86_400), ("7d", 604_800)]
)
def test_how_long_it_is_good(text: str, seconds: int) -> None:
    assert parse_ttl(text) == 1000 * seconds


@pytest.mark.parametrize("text", ["", "24", "h", "0h", "-1h", "1.5h", "1y", "367d", "9" * 30 + "s"])
def test_how_long_it_cannot_be_good(text: str) -> None:
    with pytest.raises(UserError, match="30m, 24h or 7d"):
        parse_ttl(text)


def test_numbers_rise_whatever_the_clock_does(tmp_path: Path) -> None:
    assert next_number(tmp_path, 0, 1_000) == 1_000
    assert next_number(tmp_path, 0, 1_000) == 1_001
    assert next_number(tmp_path, 0, 5) == 1_002, "the clock was set back"
    assert next_number(tmp_path, 9_000, 5) == 9_001, "it joined later than its clock says"
    (tmp_path / NUMBER_NAME).write_text("rubbish")
    assert next_number(tmp_path, 0, 9_500) == 9_500


def status(**changes: object) -> StatusReply:
    about = {"epoch": 3, "epoch_digest": "ab" * 32, "may_validate": True}
    reply = StatusReply(
        role=str(changes.pop("role", "member")),
        mesh_id="cd" * 32,
        consensus=Consensus(**{**about, **changes}),  # type: ignore[arg-type]
    )
    return reply


def test_a_member_signs_for_the_epoch_that_it_is_in() -> None:
    identity = Identity.generate()
    made = make_invitation(
        identity,
        status(),
        role=InvitedRole.VALIDATOR,
        uses=3,
        number=7,
        expires_ms=86_400_000,
        hint="fish:7500",
    )
    assert parse_line(as_line(made)) == made
    assert (made.inviter, made.epoch, made.epoch_digest) == (identity.node_id, 3, b"\xab" * 32)
    first, second = explanation(made)
    assert "validator: 3 nodes, until 1970-01-02" in first
    assert "shoal join --token" in second and "--dir DIR" in second
    plain = as_plain(made)
    assert plain["invitation"] == as_line(made) and plain["role"] == "validator"
    nowhere = sign_invitation(identity, replace(made, hint=""))
    assert "name a member that does" in explanation(nowhere)[-1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"role": "joining"}, "no member itself yet"),
        ({"may_validate": False}, "cannot invite validators"),
    ],
)
def test_nobody_signs_what_nobody_could_use(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        make_invitation(
            Identity.generate(),
            status(**changes),
            role=InvitedRole.VALIDATOR,
            uses=1,
            number=7,
            expires_ms=1,
            hint="",
        )
