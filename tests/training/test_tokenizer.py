"""One token per byte, and tokenizers from files."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.training.errors import TrainingError
from shoal.training.tokenizer import ByteTokenizer, FileTokenizer, load_tokenizer


@given(st.text())
def test_bytes_in_bytes_out(text: str) -> None:
    tokens = ByteTokenizer().encode(text)
    assert tokens.dtype == np.uint8
    assert tokens.tobytes() == text.encode()
    assert ByteTokenizer().decode(tokens.tolist()) == text


@given(st.text(max_size=40))
def test_the_library_reads_our_file_as_the_same_tokenizer(text: str) -> None:
    library = FileTokenizer(ByteTokenizer().files()["tokenizer.json"])
    assert library.vocabulary_size == 256
    assert library.encode(text).tolist() == list(text.encode())
    assert library.decode(library.encode(text).tolist()) == text


def test_half_a_character_is_shown_as_such() -> None:
    assert ByteTokenizer().decode(list("é".encode())[:1]) == "\ufffd"


def test_a_directory_with_our_files_is_the_fast_tokenizer(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path / "tokenizer")
    assert isinstance(load_tokenizer(tmp_path / "tokenizer"), ByteTokenizer)
    assert isinstance(load_tokenizer(None), ByteTokenizer)


def test_any_other_tokenizer_is_read_by_the_library(tmp_path: Path) -> None:
    words = {"shoal": 0, "fish": 1, "[UNK]": 70_000}
    content = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokens = load_tokenizer(tmp_path).encode("fish shoal fish")
    assert tokens.tolist() == [1, 0, 1]
    assert np.issubdtype(tokens.dtype, np.unsignedinteger)


def test_text_is_neither_cut_nor_filled_up_whatever_the_file_says_of_inputs() -> None:
    content = {
        "model": {"type": "WordLevel", "vocab": {"fish": 0, "pad": 1}, "unk_token": "fish"},
        "pre_tokenizer": {"type": "Whitespace"},
        "truncation": {
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
            "direction": "Right",
        },
        "padding": {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 1,
            "pad_type_id": 0,
            "pad_token": "pad",
        },
    }
    tokenizer = FileTokenizer(json.dumps(content).encode())
    texts = ["fish fish fish", "fish", ""]
    assert [each.tolist() for each in tokenizer.encode_all(texts)] == [[0, 0, 0], [0], []]
    assert tokenizer.encode(texts[0]).tolist() == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=5))
def test_all_at_once_is_each_by_itself(texts: list[str]) -> None:
    for tokenizer in (ByteTokenizer(), FileTokenizer(ByteTokenizer().files()["tokenizer.json"])):
        together = [each.tolist() for each in tokenizer.encode_all(texts)]
        assert together == [tokenizer.encode(text).tolist() for text in texts]


def test_the_mask_token_is_no_byte_of_a_text_or_what_the_file_calls_so() -> None:
    assert ByteTokenizer().mask_token == 0xFF
    with pytest.raises(UnicodeDecodeError):
        bytes([0xFF]).decode()
    for word, expected in (("[MASK]", 1), ("<mask>", 1), ("mask", None)):
        model = {"type": "WordLevel", "vocab": {"a": 0, word: 1}, "unk_token": "a"}
        assert FileTokenizer(json.dumps({"model": model}).encode()).mask_token == expected


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), ("{", "not a tokenizer")])
def test_no_tokenizer_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TrainingError, match=rf"tokenizer\.json: {message}"):
        load_tokenizer(tmp_path)
