"""What a person reads is one line, whatever the file or the other machine that it quotes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.node.errors import BAD_INPUT, MESSAGE_MAX, DamagedError, UserError


@given(st.text(max_size=3000))
def test_any_text_becomes_one_line_that_commands_no_terminal(text: str) -> None:
    shown = str(UserError(text))
    assert shown.isprintable() and len(shown) <= MESSAGE_MAX + len(" ... ")


def test_a_message_of_ours_is_left_as_it_is() -> None:
    text = 'node.toml:9: node.advertise: "fish" is not host:port, like 127.0.0.1:7400'
    assert str(UserError(text)) == text and UserError(text).exit_code == BAD_INPUT


def test_of_a_long_one_the_end_is_kept_which_says_what_to_do() -> None:
    shown = str(DamagedError("bad: " + "x" * 100_000 + "; restore it"))
    assert shown.startswith("bad: x") and shown.endswith("; restore it")


@pytest.mark.parametrize("evil", ["\x1b[2Jgone", "a\r\nb", "\u202egnol", "\x9b31m"])
def test_escape_sequences_do_not_survive(evil: str) -> None:
    assert str(UserError(evil)).isprintable()
