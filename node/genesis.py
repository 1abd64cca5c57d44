"""Checkpoint 0: where a mesh begins, and what names it.

A genesis is a document (`genesis.json`), the first anchor (`anchor.bin`, int32 little-endian) and
the tokenizer's files. The document holds the hashes of the others, so the SHA-256 of its bytes,
taken verbatim, is the mesh id: whoever knows the mesh id can check everything that it is given.
Nobody recreates weights from a seed; everybody fetches them.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.consensus.epochs import EpochRecord, first_epoch
from shoal.gossip.anchor import Anchor
from shoal.gossip.parameters import EpochParameters, genesis_parameters
from shoal.gossip.schema import ModelSchema
from shoal.node.checkpoints import OWN_NAMES
from shoal.node.durable import write_durably
from shoal.node.errors import DamagedError, PeerError
from shoal.node.parameters import MeshParameters
from shoal.training.adapters import Lora
from shoal.training.model import is_masked
from shoal.training.task_name import TaskName

GENESIS_DOMAIN = b"SHOAL-GENESIS\x01"
FORMAT = 2
# 2048 tensors with the longest names are 0.7 MiB. JSON takes forty times its length in memory.
DOCUMENT_BYTES_MAX = 1024 * 1024
# Lists and objects in it: a tensor has one of each. A million empty ones are slow to make.
DOCUMENT_PARTS_MAX = 16_384
TOKENIZER_FILE_BYTES_MAX = 64 * 1024 * 1024
TOKENIZER_FILES_MAX = 16
VALIDATORS_MAX = 31
PARAMETERS_MAX = 500_000_000


@dataclass(frozen=True, slots=True)
class Founder:
    """One of the validators that the mesh begins with."""

    node_id: bytes
    address: str
    shard_tokens: int
    share_permille: int


@dataclass(frozen=True)
class Genesis:
    """A checked genesis document with its files."""

    document: bytes
    schema: ModelSchema
    model_config: dict[str, Any]
    parameters: MeshParameters
    founders: tuple[Founder, ...]
    anchor_root: bytes
    tokenizer_hashes: dict[str, bytes]
    name: str
    # The adapters that the schema is of; None where it is of the model itself.
    lora: Lora | None
    # What is trained where that is no language model; `model_config` names it too.
    task: TaskName | None

    @cached_property
    def mesh_id(self) -> bytes:
        """The 32 bytes that name the mesh."""
        return hashlib.sha256(GENESIS_DOMAIN + self.document).digest()

    @cached_property
    def validators(self) -> tuple[bytes, ...]:
        """The founders' ids in ascending order: PBFT's replica numbering."""
        return tuple(sorted(founder.node_id for founder in self.founders))

    @property
    def adapter_config(self) -> bytes | None:
        """What peft reads beside the adapters of a checkpoint; None where there are none."""
        if self.lora is None:
            return None
        content = {
            "base_model_name_or_path": self.lora.base,
            "bias": "none",
            "inference_mode": True,
            "lora_alpha": self.lora.alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": self.lora.rank,
            "target_modules": self.lora.target_modules,
            "task_type": None if is_masked(self.model_config) else "CAUSAL_LM",
        }
        return (json.dumps(content, indent=2) + "\n").encode()

    def first_epoch(self) -> EpochRecord:
        """Epoch 0 of the log: the founders vote."""
        return first_epoch(self.mesh_id, self.validators)

    def epoch_parameters(self) -> EpochParameters:
        """Return what is in force until the first checkpoint is committed."""
        founders = len(self.founders)
        mesh = self.parameters.worked_out(founders)
        return genesis_parameters(
            [(f.node_id, f.shard_tokens, f.share_permille) for f in self.founders],
            self.schema,
            kept_per_chunk=mesh.kept_per_chunk(founders),
            alpha=mesh.alpha,
            largest_value=mesh.largest_first_value,
            steps=mesh.local_steps if mesh.normalise_steps else 0,
        )

    def read_anchor(self, data: bytes) -> Anchor:
        """Turn the bytes of `anchor.bin` into the anchor; raises PeerError where they differ."""
        anchor = anchor_from_bytes(self.schema, data)
        if anchor.root() != self.anchor_root:
            raise PeerError("genesis-anchor", "its Merkle root is not the genesis document's")
        return anchor

    def check_tokenizer(self, files: Mapping[str, bytes]) -> None:
        """Raise PeerError unless `files` are exactly the tokenizer that the document names."""
        hashes = {name: hashlib.sha256(data).digest() for name, data in files.items()}
        if hashes != self.tokenizer_hashes:
            raise PeerError("genesis-tokenizer", "its files are not the genesis document's")


def anchor_from_bytes(schema: ModelSchema, data: bytes) -> Anchor:
    """Return the anchor whose int32 little-endian values are `data`; raises PeerError on size."""
    if len(data) != 4 * schema.layout.total:
        raise PeerError("anchor-size", f"{len(data)} bytes for {schema.layout.total} parameters")
    values = np.frombuffer(data, dtype="<i4").astype(np.int32)
    return Anchor(schema, torch.from_numpy(values))


def anchor_to_bytes(anchor: Anchor) -> bytes:
    """Return the anchor's values as int32 little-endian bytes."""
    return anchor.values.cpu().numpy().astype("<i4", copy=False).tobytes()


def make_document(
    *,
    name: str,
    schema: ModelSchema,
    model_config: Mapping[str, Any],
    parameters: MeshParameters,
    founders: tuple[Founder, ...],
    anchor_root: bytes,
    tokenizer_files: Mapping[str, bytes],
    lora: Lora | None = None,
) -> bytes:
    """Return the bytes of `genesis.json`."""
    content = {
        **({} if lora is None else {"lora": lora.to_json()}),
        "format": FORMAT,
        "name": name,
        "schema": schema.to_json(),
        "model": dict(model_config),
        "parameters": asdict(parameters),
        "founders": [
            {
                "id": founder.node_id.hex(),
                "address": founder.address,
                "shard_tokens": founder.shard_tokens,
                "share_permille": founder.share_permille,
            }
            for founder in founders
        ],
        "anchor_root": anchor_root.hex(),
        "tokenizer": {
            file: hashlib.sha256(data).hexdigest() for file, data in tokenizer_files.items()
        },
    }
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def parse_document(document: bytes) -> Genesis:
    """Check a genesis document from anywhere; raises PeerError that says what is wrong with it."""
    if len(document) > DOCUMENT_BYTES_MAX:
        raise PeerError("genesis-size", f"{len(document)} bytes")
    if document.count(b"{") + document.count(b"[") > DOCUMENT_PARTS_MAX:
        raise PeerError("genesis-size", "too many lists and objects")
    try:
        content = json.loads(document)
        if content["format"] != FORMAT:
            raise PeerError("genesis-format", f"{content['format']}; this Shoal reads {FORMAT}")
        genesis = Genesis(
            document=document,
            schema=ModelSchema.from_json(content["schema"]),
            model_config=dict(content["model"]),
            parameters=MeshParameters(**content["parameters"]),
            founders=tuple(_parse_founder(founder) for founder in content["founders"]),
            anchor_root=bytes.fromhex(content["anchor_root"]),
            tokenizer_hashes={
                str(file): bytes.fromhex(digest) for file, digest in content["tokenizer"].items()
            },
            name=str(content["name"]),
            lora=Lora.from_json(content["lora"]) if "lora" in content else None,
            task=TaskName.of(content["model"]),
        )
    except PeerError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PeerError("genesis-malformed", str(error)) from None
    _check_genesis(genesis)
    return genesis


def check_tokenizer_names(names: Collection[str]) -> None:
    """Raise PeerError unless a checkpoint directory has room for files of these names."""
    if len(names) > TOKENIZER_FILES_MAX or any(
        not name or Path(name).name != name or name.startswith(".") for name in names
    ):
        raise PeerError("genesis-tokenizer", "its file names are not plain names")
    # Also where a file system takes two spellings for one name.
    if taken := sorted(name for name in names if name.lower() in OWN_NAMES):
        raise PeerError(
            "genesis-tokenizer", f"{taken[0]} is a checkpoint's own file, so it needs another name"
        )


def _parse_founder(content: Mapping[str, Any]) -> Founder:
    return Founder(
        node_id=bytes.fromhex(content["id"]),
        address=str(content["address"]),
        shard_tokens=int(content["shard_tokens"]),
        share_permille=int(content["share_permille"]),
    )


def _check_genesis(genesis: Genesis) -> None:
    ids = [founder.node_id for founder in genesis.founders]
    if not 1 <= len(ids) <= VALIDATORS_MAX or len(set(ids)) != len(ids):
        raise PeerError("genesis-founders", f"{len(ids)} founders, 1 to {VALIDATORS_MAX} allowed")
    for founder in genesis.founders:
        if len(founder.node_id) != 32 or not 1 <= founder.share_permille <= 1000:
            raise PeerError("genesis-founders", "an id or a share is out of range")
        if founder.shard_tokens < 1:
            raise PeerError("genesis-founders", "a founder without data")
    if len(genesis.anchor_root) != 32:
        raise PeerError("genesis-malformed", "anchor_root is not 32 bytes")
    if genesis.schema.layout.total > PARAMETERS_MAX:
        raise PeerError("genesis-size", f"more than {PARAMETERS_MAX} parameters")
    check_tokenizer_names(genesis.tokenizer_hashes)
    if genesis.task is not None and (genesis.lora is not None or genesis.tokenizer_hashes):
        raise PeerError("genesis-task", "a task has no adapters and no tokenizer")
    if problems := genesis.parameters.problems():
        raise PeerError("genesis-parameters", "; ".join(problems))


def write_genesis(
    directory: Path, genesis: Genesis, anchor: Anchor, tokenizer: Mapping[str, bytes]
) -> None:
    """Write the genesis and its files durably to `directory` (made if need be).

    The document comes last: where it is, the rest is.
    """
    (directory / "tokenizer").mkdir(parents=True, exist_ok=True)
    write_durably(directory / "anchor.bin", anchor_to_bytes(anchor))
    for name, data in tokenizer.items():
        write_durably(directory / "tokenizer" / name, data)
    write_durably(directory / "genesis.json", genesis.document)


def load_genesis(directory: Path) -> tuple[Genesis, Anchor, dict[str, bytes]]:
    """Read and check a genesis from disk; raises DamagedError in one line."""
    try:
        genesis = parse_document((directory / "genesis.json").read_bytes())
        anchor = genesis.read_anchor((directory / "anchor.bin").read_bytes())
        tokenizer = {
            name: (directory / "tokenizer" / name).read_bytes() for name in genesis.tokenizer_hashes
        }
        genesis.check_tokenizer(tokenizer)
    except OSError as error:
        raise DamagedError(
            f"the genesis in {directory} cannot be read ({error.strerror}: {error.filename}); "
            "copy it from another member of the mesh or join again"
        ) from None
    except PeerError as error:
        raise DamagedError(
            f"the genesis in {directory} is damaged ({error}); copy it from another member"
        ) from None
    return genesis, anchor, tokenizer
