"""Whatever bytes `shoal verify` is given, it answers with a proof or a refusal, never with a crash.

Every input is made from a seed, so a failure repeats.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal.node.verify import verify_checkpoint
from shoal.node.verify_content import check_model_files
from shoal.node.verify_formats import (
    Fields,
    Refused,
    parse_certificate,
    parse_genesis,
    parse_link,
    parse_operation,
)
from tests.node.certified import MESH, refusal

Parse = Callable[[bytes], object]
PARSERS: dict[str, tuple[Parse, bytes]] = {
    "link": (parse_link, MESH.links[0]),
    "operation": (parse_operation, MESH.operation),
    "certificate": (
        lambda data: parse_certificate(Fields(data, "certificate")),
        MESH.commit(MESH.operation).to_bytes(),
    ),
    "genesis": (parse_genesis, MESH.genesis.document),
}
ODD_VALUES: list[Any] = [None, True, -1, 2**70, 1e308, "", "\ud800", "zz", [], [[]], {}, {"a": []}]


def spoilt(good: bytes, seed: int) -> bytes:
    """`good` after a few changes: bytes changed, cut out, doubled, or noise put in."""
    chance = random.Random(seed)
    data = bytearray(good)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        size = chance.choice([1, 2, 4, 8, 32, 64])
        match chance.randrange(4):
            case 0:
                data[at : at + size] = chance.randbytes(min(size, len(data) - at))
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size]
            case _:
                data[at:at] = chance.choice([b"\x00", b"\xff"]) * size
    return bytes(data)


@pytest.mark.parametrize("name", PARSERS)
def test_noise_is_parsed_or_refused(name: str) -> None:
    parse, good = PARSERS[name]
    parsed = refused = 0
    for seed in range(3000):
        try:
            parse(spoilt(good, seed))
        except Refused:
            refused += 1
        else:
            parsed += 1
    assert refused > 100
    parse(good)


def variations(content: Any) -> Iterator[Any]:
    """The document with one value after the other replaced by something odd, or left out."""
    if isinstance(content, dict):
        for key, value in content.items():
            rest = {k: v for k, v in content.items() if k != key}
            yield rest
            for odd in (*ODD_VALUES, *variations(value)):
                yield {**rest, key: odd}
    elif isinstance(content, list) and content:
        for odd in (*ODD_VALUES, *variations(content[0])):
            yield [odd, *content[1:]]


def test_a_genesis_of_odd_values_is_parsed_or_refused() -> None:
    tried = 0
    for content in (*ODD_VALUES, *variations(json.loads(MESH.genesis.document))):
        with suppress(Refused):
            parse_genesis(json.dumps(content).encode())
        tried += 1
    assert tried > 300


def test_a_header_of_weights_of_odd_values_is_refused(directory: Path) -> None:
    path = directory / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    good, weights = json.loads(data[8 : 8 + length]), data[8 + length :]
    tried = 0
    for content in (*ODD_VALUES, *variations(good)):
        header = json.dumps(content, separators=(",", ":")).encode()
        header = header.ljust(-(-len(header) // 8) * 8)
        path.write_bytes(len(header).to_bytes(8, "little") + header + weights)
        assert refusal(directory).reason == "weights-header"
        tried += 1
    assert tried > 100
    path.write_bytes(data)
    verify_checkpoint(directory, MESH.mesh_id)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("depth", [100, 5_000, 100_000])
def test_a_genesis_nested_deeper_than_can_be_read_or_written_is_refused(
    directory: Path, depth: int
) -> None:
    text = json.dumps({**json.loads(MESH.genesis.document), "model": 0})
    (directory / "genesis.json").write_text(text.replace('"model": 0', f'"model": {nested(depth)}'))
    assert refusal(directory, trust=None).reason in {"malformed-genesis", "epoch-mesh"}
    model: list[Any] = []
    for _ in range(depth):
        model = [model]
    with pytest.raises(Refused, match="config"):
        check_model_files(directory, replace(parse_genesis(MESH.genesis.document), model=model))
