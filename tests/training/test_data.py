"""What is trained on and what is held out, from the built-in text and from files."""

import gzip
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.training import builtin_text
from shoal.training.builtin_text import builtin_documents, subject_of
from shoal.training.data import Corpus, load, split_held_out, union_held_out
from shoal.training.documents import FileDocuments
from shoal.training.errors import TrainingError
from shoal.training.tokenizer import SEPARATOR, ByteTokenizer, Tokens

BYTES = ByteTokenizer()


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 7, 16, 64])
def test_builtin_shards_are_a_partition_into_pieces_of_similar_length(
    shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Read once, not once per shard.
    shelf = builtin_text._shelf()
    monkeypatch.setattr(builtin_text, "_shelf", lambda: shelf)
    pieces = [builtin_documents(index=index, shards=shards) for index in range(shards)]
    sizes = [sum(map(len, piece)) for piece in pieces]
    assert max(sizes) <= 2 * min(sizes)
    whole = builtin_documents(index=0, shards=1)
    assert list(itertools.chain.from_iterable(pieces)) == whole
    if shards == 4:
        assert all(1_000_000 < size < 4_000_000 for size in sizes)


def test_builtin_shards_differ_in_subject() -> None:
    assert subject_of("email/parser.py") == subject_of("socket.py") == "network"
    assert subject_of("pydoc_data/topics/assert") == "reference"
    assert subject_of("something_new.py") == "other"
    # What each of four nodes reads about, counted by a word of each subject's own.
    words = ("statement", "datetime", "socket", "tkinter")
    shards = ["\n".join(builtin_documents(index=index, shards=4)) for index in range(4)]
    for word, home in zip(words, (0, 1, 2, 3), strict=True):
        counts = [shard.count(word) for shard in shards]
        assert counts.index(max(counts)) == home, (word, counts)


def test_builtin_text_is_the_same_every_time() -> None:
    one, two = load("builtin:3/16", BYTES), load("builtin:3/16", BYTES)
    assert np.array_equal(one.train, two.train)
    assert np.array_equal(one.held_out, two.held_out)


def test_every_shard_holds_out_some_and_never_what_it_trains_on() -> None:
    for index in range(4):
        corpus = load(f"builtin:{index}/4", BYTES)
        share = len(corpus.held_out) / (len(corpus.train) + len(corpus.held_out))
        assert 0.02 < share < 0.12
        train = set(corpus.train.tobytes().split(SEPARATOR.encode()))
        held_out = set(corpus.held_out.tobytes().split(SEPARATOR.encode()))
        assert train & held_out == {b""}


def test_the_union_of_held_out_text_is_that_of_all_shards() -> None:
    parts = [load(f"builtin:{index}/3", BYTES).held_out for index in range(3)]
    assert np.array_equal(union_held_out(3, BYTES), np.concatenate(parts))


@pytest.mark.parametrize(
    "source", ["builtin", "builtin:4/4", "builtin:0/0", "builtin:0/65", "builtin:-1/4"]
)
def test_a_shard_that_there_is_not_is_refused(source: str) -> None:
    with pytest.raises(TrainingError, match=f'"{source}" is no shard'):
        load(source, BYTES)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=9, unique=True))
def test_what_is_held_out_depends_on_content_alone(documents: list[str]) -> None:
    def split(texts: list[str]) -> tuple[list[bytes], list[bytes]]:
        train, held_out, _ = split_held_out(texts, BYTES)
        return sorted(bytes(train).split(b"\0")), sorted(bytes(held_out).split(b"\0"))

    assert split(documents) == split(documents[::-1])


def test_more_text_later_moves_nothing_across() -> None:
    documents = [f"document number {number}\n" * 3 for number in range(400)]
    before = bytes(split_held_out(documents[:200], BYTES)[1])
    after = bytes(split_held_out(documents, BYTES)[1])
    assert after.startswith(before)
    assert 0.02 < len(after) / sum(map(len, documents)) < 0.09


def test_one_document_has_its_end_held_out() -> None:
    train, held_out, _ = split_held_out(["abcdefghij" * 10], BYTES)
    assert bytes(train) + bytes(held_out) == b"abcdefghij" * 10
    assert len(held_out) == 5


def test_two_documents_are_one_to_train_on_and_one_held_out() -> None:
    train, held_out, _ = split_held_out(["first", "second"], BYTES)
    assert {bytes(train), bytes(held_out)} == {b"first\0", b"second\0"}


def test_batches_follow_from_seed_round_and_step() -> None:
    corpus = Corpus("x", np.arange(200, dtype=np.uint8), np.arange(9, dtype=np.uint8))

    def batch(seed: int = 1, round: int = 2, step: int = 3) -> list[list[int]]:
        windows = corpus.batch(seed=seed, round=round, step=step, batch=4, sequence=8)
        assert windows.shape == (4, 9)
        return windows.tolist()

    assert batch() == batch()
    assert batch() != batch(seed=2) != batch(round=3) != batch(step=4)
    # Windows are stretches of the text, and every stretch can come up: the first and the last.
    starts = {window[0] for step in range(500) for window in batch(step=step)}
    assert starts == set(range(192))
    assert all(window == list(range(window[0], window[0] + 9)) for window in batch())


def test_a_directory_is_read_in_the_order_of_names_and_only_its_text(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second " * 40)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.md").write_text("first " * 40)
    (tmp_path / "picture.png").write_bytes(b"\xff\xd8")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "c.txt").write_text("hidden")
    corpus = load(str(tmp_path), BYTES)
    text = {bytes(corpus.train), bytes(corpus.held_out)}
    assert text == {b"first " * 40 + b"\0", b"second " * 40 + b"\0"}


def test_json_lines_give_a_document_per_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "one", "id": 1}\n\n{"text": "two"}\n{"text": "three"}\n')
    corpus = load(str(path), BYTES)
    documents = [*bytes(corpus.train).split(b"\0"), *bytes(corpus.held_out).split(b"\0")]
    assert sorted(documents) == [b"", b"", b"one", b"three", b"two"]


def test_a_long_file_is_cut_between_lines_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "book"
    lines = "".join(f"line {number} of a long book\n" for number in range(20_000))
    path.write_text(lines)
    corpus = load(str(path), BYTES)
    assert len(corpus.train) > 10 * len(corpus.held_out) > 0
    pieces = [*bytes(corpus.train).split(b"\0"), *bytes(corpus.held_out).split(b"\0")]
    assert all(piece.endswith(b"\n") for piece in pieces if piece)
    assert sum(map(len, pieces)) == len(lines)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "does not exist"),
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n\n", "holds no text"),
        ("latin.txt", b"caf\xe9 au lait" * 50, r"not UTF-8 text .*convert it"),
        ("bad.jsonl", b'{"text": "fine"}\n{"text": \n', r"bad\.jsonl:2: not a JSON object"),
        ("other.jsonl", b'{"body": "x"}\n', r'other\.jsonl:1: no string under "text"'),
        ("list.jsonl", b"[1]\n", r'list\.jsonl:1: no string under "text"'),
        ("latin.jsonl", b'{"text": "\xe9"}\n', "not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_that_names_it(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError, match=message) as caught:
        load(str(tmp_path / name), BYTES)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


ROWS = b'{"text": "one", "body": "1"}\n{"text": "two", "body": "2"}\n'


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)]
)
def test_compressed_lines_are_read_and_a_file_that_is_none_is_refused(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(pack(ROWS) + pack(ROWS))
    assert list(FileDocuments(tmp_path)) == ["one", "two"] * 2
    path.write_bytes(pack(ROWS * 10_000)[:-30])
    with pytest.raises(TrainingError, match=r"cannot be unpacked.*anew|not a JSON object"):
        list(FileDocuments(path))
    path.write_bytes(b"not packed")
    with pytest.raises(TrainingError, match="cannot be unpacked"):
        list(FileDocuments(path))
    # A few hundred bytes that would be a line of 32 MB.
    bomb = pack(b'{"text": "' + bytes(1 << 25))
    assert len(bomb) < 100_000
    path.write_bytes(bomb)
    with pytest.raises(TrainingError, match="a line of more than 16,777,216 characters"):
        list(FileDocuments(path))


def test_a_source_may_say_which_column_and_which_files(tmp_path: Path) -> None:
    for name in ("data/train-0.jsonl", "data/train-1.jsonl", "data/test-0.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(ROWS)

    def documents(options: str) -> list[str]:
        return list(FileDocuments.of(f"{tmp_path}{options}"))

    assert len(documents("")) == 7
    assert documents("?files=data/train-*,*.md&text=body") == [ROWS.decode(), "1", "2", "1", "2"]
    assert documents("/data/test-0.jsonl?text=body") == ["1", "2"]
    with pytest.raises(TrainingError, match=r'no string under "title".*may end with [?]text=NAME'):
        documents("/data?text=title")
    with pytest.raises(TrainingError, match=r"holds no text in files like \*.csv; .txt"):
        documents("?files=*.csv")
    with pytest.raises(TrainingError, match="does not exist"):
        documents("?lines=3")


def test_a_directory_without_text_says_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\xff")
    with pytest.raises(TrainingError, match=r"holds no text; \.txt.*\.jsonl .*and \.parquet"):
        load(str(tmp_path), BYTES)


def test_text_that_is_shorter_than_a_sequence_says_how_much_is_needed() -> None:
    corpus = Corpus("notes.txt", np.zeros(500, np.uint8), np.zeros(20, np.uint8))
    corpus.require(sequence=19, vocabulary_size=256)
    with pytest.raises(TrainingError, match=r"notes\.txt: too short: 20 tokens to hold out, 21"):
        corpus.require(sequence=20, vocabulary_size=256)


def test_a_tokenizer_and_a_model_that_do_not_belong_together_are_refused() -> None:
    tokens: Tokens = np.array([1, 2, 300], dtype=np.uint16)
    with pytest.raises(TrainingError, match="gives token 300, but the model's vocabulary has 256"):
        Corpus("x", tokens, tokens).require(sequence=1, vocabulary_size=256)


def test_parquet_is_read_where_pyarrow_is_installed(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: Parquet untested")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"]}), path)
    corpus = load(str(path), BYTES)
    assert {bytes(corpus.train), bytes(corpus.held_out)} == {b"one\0", b"two\0"}
    parquet.write_table(pyarrow.table({"body": ["one"]}), path)
    with pytest.raises(TrainingError, match=r'no column "text";.* it has body'):
        load(str(path), BYTES)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(TrainingError, match="not a readable Parquet file"):
        load(str(path), BYTES)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "data.parquet").write_bytes(json.dumps({}).encode())
    with pytest.raises(TrainingError, match=r"needs pyarrow; pip install 'shoal\[parquet\]'"):
        load(str(tmp_path / "data.parquet"), BYTES)


def test_what_datasets_saved_is_read_where_it_is_installed(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    rows = datasets.Dataset.from_dict({"text": ["one", None, "two"], "label": [1, 2, 3]})
    rows.save_to_disk(tmp_path / "rows")
    assert list(FileDocuments(tmp_path / "rows")) == ["one", "two"]
    splits = datasets.DatasetDict({"train": rows, "test": rows.select([0])})
    splits.save_to_disk(tmp_path / "splits")
    assert list(FileDocuments(tmp_path / "splits")) == ["one", "two"]
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "no-train")
    with pytest.raises(TrainingError, match='no-train: no split "train"; name one of test'):
        list(FileDocuments(tmp_path / "no-train"))
    rows.rename_column("text", "body").save_to_disk(tmp_path / "body")
    with pytest.raises(TrainingError, match=r'no column "text";.* it has body, label'):
        list(FileDocuments(tmp_path / "body"))
    (arrow,) = (tmp_path / "rows").glob("*.arrow")
    arrow.unlink()
    arrow.write_bytes(b"not this")
    with pytest.raises(TrainingError, match="rows: not a readable dataset"):
        list(FileDocuments(tmp_path / "rows"))


def test_a_dataset_without_datasets_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"needs it; pip install 'shoal\[datasets\]'"):
        list(FileDocuments(tmp_path))
