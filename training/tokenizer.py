"""Text to tokens. The built-in tokenizer has one token per byte, and its id is the byte.

Its files are what transformers' AutoTokenizer opens: a byte-level BPE without merges. No special
tokens: a special token would be a string, and that string could stand in somebody's text. Byte 0,
which text does not contain, separates documents.

Other tokenizers are a directory with a `tokenizer.json`, read by the tokenizers library.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shoal.training.errors import TrainingError

# What stands between two documents, and the token that a byte-level model ends with.
SEPARATOR = "\0"
# What BERT's and RoBERTa's descendants call the token that hides another.
MASK_TOKENS = ("[MASK]", "<mask>")
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json")
TOKENIZER_FILE_BYTES_MAX = 64 * 1024 * 1024

Tokens = npt.NDArray[np.unsignedinteger[Any]]


class Tokenizer(Protocol):
    """What the rest of the folder needs of a tokenizer."""

    @property
    def vocabulary_size(self) -> int:
        """How many different tokens there are."""
        ...

    @property
    def mask_token(self) -> int | None:
        """The token that hides another from a masked model; None where there is none."""
        ...

    @property
    def identity(self) -> str:
        """A name that no tokenizer has which gives other tokens."""
        ...

    def encode(self, text: str) -> Tokens:
        """Return the tokens of `text`, in the smallest unsigned type that holds every token."""
        ...

    def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
        """Return what `encode` gives for each text, sooner where there is more than one core."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """Return the text of `tokens`; bytes that are no UTF-8 become U+FFFD."""
        ...


class ByteTokenizer:
    """One token per UTF-8 byte."""

    vocabulary_size = 256
    identity = "bytes"
    # A byte that no UTF-8 text holds.
    mask_token = 0xFF

    def encode(self, text: str) -> Tokens:
        """Return the UTF-8 bytes of `text` as uint8."""
        return np.frombuffer(text.encode(), dtype=np.uint8)

    def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the UTF-8 bytes of each text as uint8."""
        return [self.encode(text) for text in texts]

    def decode(self, tokens: list[int]) -> str:
        """Return the text whose UTF-8 bytes are `tokens`."""
        return bytes(tokens).decode(errors="replace")

    def files(self) -> dict[str, bytes]:
        """Return the files that make transformers' AutoTokenizer the same tokenizer."""
        alphabet = {character: byte for byte, character in enumerate(_byte_alphabet())}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        content: dict[str, Any] = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {**byte_level, "trim_offsets": True},
            "post_processor": None,
            "decoder": {**byte_level, "trim_offsets": True},
            "model": {"type": "BPE", "vocab": alphabet, "merges": []},
        }
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        return {
            TOKENIZER_FILE: _json_bytes(content),
            "tokenizer_config.json": _json_bytes(config),
        }

    def save(self, directory: Path) -> None:
        """Write the tokenizer's files to `directory`, made if need be."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            (directory / name).write_bytes(data)


class FileTokenizer:
    """A tokenizer of the tokenizers library."""

    def __init__(self, data: bytes) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        # Some files say how a model's input is cut and filled up; text is neither.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.identity = hashlib.sha256(data).hexdigest()
        self.vocabulary_size = int(self._tokenizer.get_vocab_size(with_added_tokens=True))
        masks = (self._tokenizer.token_to_id(name) for name in MASK_TOKENS)
        self.mask_token: int | None = next((token for token in masks if token is not None), None)
        self._dtype = np.min_scalar_type(max(self.vocabulary_size - 1, 0))

    def encode(self, text: str) -> Tokens:
        """Return the ids of `text`, without special tokens."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, dtype=self._dtype)

    def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the ids of each text, without special tokens; uses all of rayon's threads."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(each.ids, dtype=self._dtype) for each in found]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of `tokens`."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def tokenizer_files(directory: Path) -> dict[str, bytes]:
    """Return the files of a tokenizer that lie in `directory`, by name, where they are read.

    `load_tokenizer` has checked the first of them. Raises TrainingError for one that is too large.
    """
    files = {}
    for name in TOKENIZER_FILES:
        path = directory / name
        if path.is_file():
            if path.stat().st_size > TOKENIZER_FILE_BYTES_MAX:
                raise TrainingError(f"{path}: larger than 64 MiB, so it is not of a tokenizer")
            files[name] = path.read_bytes()
    return files


def load_tokenizer(directory: Path | None) -> Tokenizer:
    """Return the tokenizer in `directory`; None is the built-in one.

    Raises TrainingError where there is none or it cannot be understood.
    """
    byte_tokenizer = ByteTokenizer()
    if directory is None:
        return byte_tokenizer
    path = directory / TOKENIZER_FILE
    try:
        if path.stat().st_size > TOKENIZER_FILE_BYTES_MAX:
            raise TrainingError(f"{path}: larger than 64 MiB, so it is not a tokenizer")
        data = path.read_bytes()
    except OSError as error:
        raise TrainingError(
            f"{path}: {error.strerror}; a tokenizer is a directory with this file in it"
        ) from None
    # The library would give the same tokens, a hundred times slower.
    if data == byte_tokenizer.files()[TOKENIZER_FILE]:
        return byte_tokenizer
    try:
        return FileTokenizer(data)
    except Exception as error:  # The library raises nothing narrower.
        raise TrainingError(f"{path}: not a tokenizer that can be read: {error}") from None


def _byte_alphabet() -> list[str]:
    """Return the printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = (chr(256 + position) for position in range(256))
    return [chr(byte) if byte in printable else next(substitutes) for byte in range(256)]


def _json_bytes(content: object) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
