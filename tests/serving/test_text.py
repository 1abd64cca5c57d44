"""Pieces of text: they add up, end between characters, and stop where they should."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.serving.text import Detokenizer, StopStrings
from shoal.training.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer

TEXT = "Ein Schwarm — 魚の群れ — needs no leader 🐟🐟, naïve as it looks. "


def byte_pairs() -> FileTokenizer:
    """Byte-level BPE as large models have it, whose tokens end within characters."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator([TEXT], vocab_size=300, show_progress=False)
    return FileTokenizer(trained.to_str().encode())


TOKENIZERS: dict[str, Tokenizer] = {"bytes": ByteTokenizer(), "byte pairs": byte_pairs()}


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_pieces_end_between_characters(tokenizer: Tokenizer) -> None:
    tokens = [int(token) for token in tokenizer.encode(TEXT * 3)]
    detokenizer = Detokenizer(tokenizer.decode)
    pieces = [detokenizer.add(token) for token in tokens]
    assert "" in pieces, "some characters are more than one token"
    assert "".join(pieces) == TEXT * 3
    assert detokenizer.rest() == ""


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@settings(deadline=None)
@given(tokens=st.lists(st.integers(0, 255), max_size=40))
def test_pieces_of_anything_add_up_to_the_whole(tokenizer: Tokenizer, tokens: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer.decode)
    pieces = [detokenizer.add(token) for token in tokens]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join(pieces) + detokenizer.rest() == tokenizer.decode(tokens)


@settings(deadline=None)
@given(
    pieces=st.lists(st.text("ab", max_size=3), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_before_its_first_stop_string_however_it_arrives(
    pieces: list[str], stops: list[str]
) -> None:
    stop, shown, stopped = StopStrings(stops), "", False
    for piece in pieces:
        text, stopped = stop.add(piece)
        shown += text
        if stopped:
            break
    else:
        text, stopped = stop.end("")
        shown += text
    whole = "".join(pieces)
    assert stopped == any(each in whole for each in stops)
    # The first that is complete ends it: a longer one that began earlier is not waited for.
    assert whole.startswith(shown) and not any(each in shown for each in stops)
    if not stopped:
        assert shown == whole


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    stop = StopStrings(["\nuser:"])
    assert stop.add("a fish\n") == ("a fish", False)
    assert stop.add("use") == ("", False)
    assert stop.add("ful") == ("\nuseful", False)
    assert stop.add("\nuser: and") == ("", True)
