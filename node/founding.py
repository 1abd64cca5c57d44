"""Founding a mesh: the first weights, the genesis, and a directory for each founder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from shoal.gossip.anchor import Anchor
from shoal.gossip.schema import ModelSchema, TensorSchema, choose_fraction_bits
from shoal.node.config import CONFIG_NAME, document_settings
from shoal.node.errors import PeerError, UserError
from shoal.node.genesis import (
    Founder,
    check_tokenizer_names,
    make_document,
    parse_document,
    write_genesis,
)
from shoal.node.hub import local_data
from shoal.node.identity import Identity
from shoal.node.parameters import MeshParameters
from shoal.node.progress import tell
from shoal.training.adapters import Lora, adapted_model
from shoal.training.data import Source, load
from shoal.training.errors import TrainingError
from shoal.training.installed_tasks import installed_task, task_config
from shoal.training.model import (
    PARAMETERS_MAX,
    FlatModel,
    build_model,
    default_config,
    load_model,
    with_mask_token,
)
from shoal.training.task import Task
from shoal.training.task_training import Examples, TaskModel
from shoal.training.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer, tokenizer_files


def node_addresses(host: str, ports: Sequence[int]) -> list[str]:
    """Return an address per node: one host with a port each, or a host each ("node{index}")."""
    if "{index}" in host:
        return [f"{host.format(index=index)}:{ports[0]}" for index in range(len(ports))]
    return [f"{host}:{port}" for port in ports]


def node_sources(data: str, nodes: int) -> list[str]:
    """Return what each founder trains on.

    "builtin" gives every node a subject of its own; elsewhere {index} becomes the node's number,
    from 0.
    """
    pattern = f"builtin:{{index}}/{nodes}" if data == "builtin" else data
    return [pattern.replace("{index}", str(index)) for index in range(nodes)]


@dataclass(frozen=True, slots=True)
class Start:
    """What a mesh begins with: a model and its tokenizer, or a task."""

    config: dict[str, Any]
    tokenizer: Tokenizer | None
    tokenizer_files: dict[str, bytes]
    base: Path | None = None
    lora: Lora | None = None
    task: Task | None = None
    token_cache: Path | None = None

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any] | None,
        base: Path | None,
        lora: Lora | None,
        task: str | None = None,
        token_cache: Path | None = None,
    ) -> Self:
        """Raises TrainingError.

        config: of transformers, or the task's; None is the default. base: directory of a pretrained
        model of that configuration; the mesh begins with its tokenizer and its weights, or with
        fresh adapters of it, `lora`. task: the name of what is trained instead of a language model.
        token_cache: for the tokens of what is read (training/token_files.py).
        """
        if task is not None:
            document = task_config(task, config or {})
            return cls(document, None, {}, task=installed_task(document, task))
        tokenizer = load_tokenizer(base)
        files = ByteTokenizer().files() if base is None else tokenizer_files(base)
        chosen = config if config is not None else default_config()
        config = with_mask_token(chosen, tokenizer)
        return cls(config, tokenizer, files, base, lora, token_cache=token_cache)

    def model(self, seed: int) -> FlatModel:
        """Return it with its first weights; raises TrainingError."""
        if self.task is not None:
            return TaskModel(self.task, seed)
        if self.base is None:
            return FlatModel(build_model(self.config, seed))
        if self.lora is None:
            return FlatModel(load_model(self.config, self.base))
        return FlatModel(adapted_model(self.config, self.lora, self.base, seed))

    def read(self, source: str) -> Source:
        """Return what one founder trains on; raises TrainingError, and UserError where the hub does
        not have it."""
        if self.task is not None:
            return Examples.read(self.task, source)
        assert self.tokenizer is not None

        def told(done: int, of: int) -> None:
            tell(f"reading {source}, MB", done // 10**6, of // 10**6)

        found = local_data(source)
        return load(found, self.tokenizer, cache=self.token_cache, tell=told)


def create_mesh(
    directory: Path,
    *,
    nodes: int,
    host: str,
    ports: Sequence[int],
    data: str,
    model_config: Mapping[str, Any] | None,
    parameters: MeshParameters,
    seed: int,
    names: Sequence[str],
    base: Path | None = None,
    lora: Lora | None = None,
    task: str | None = None,
    token_cache: Path | None = None,
) -> bytes:
    """Make `directory/NAME` for each founder, with a key, a node.toml and the genesis.

    data: as in `node_sources`; model_config, base, lora, task, token_cache: as in `Start.of`.
    Returns the mesh id. Raises UserError in one line where the model or the data is wrong; then
    nothing has been written.
    """
    addresses = node_addresses(host, ports)
    sources = node_sources(data, nodes)
    try:
        start = Start.of(model_config, base, lora, task, token_cache)
        check_tokenizer_names(start.tokenizer_files)
        tell("making the first weights")
        anchor = first_anchor(start.model(seed))
        tokens = _token_counts(sources, start)
    except TrainingError as error:
        raise UserError(str(error)) from None
    except PeerError as error:
        raise UserError(f"the tokenizer cannot be part of a mesh: {error}") from None
    identities = []
    for name in names:
        (directory / name).mkdir(parents=True, exist_ok=True)
        identities.append(Identity.create(directory / name / "identity.key"))
    founders = tuple(
        Founder(identity.node_id, address, tokens[source], 1000)
        for identity, address, source in zip(identities, addresses, sources, strict=True)
    )
    document = make_document(
        name=directory.name,
        schema=anchor.schema,
        model_config=start.config,
        parameters=parameters,
        founders=founders,
        anchor_root=anchor.root(),
        tokenizer_files=start.tokenizer_files,
        lora=lora,
    )
    genesis = parse_document(document)
    for index, name in enumerate(names):
        write_genesis(directory / name / "genesis", genesis, anchor, start.tokenizer_files)
        values: dict[str, object] = {
            "node.name": name,
            "node.listen": addresses[index],
            "node.advertise": addresses[index],
            "train.data": sources[index],
            "train.seed": seed + index,
        }
        if lora is not None:
            values["train.base"] = str(base)
        if task is not None and ":" in task:
            values["train.task"] = task
        (directory / name / CONFIG_NAME).write_text(document_settings(values), encoding="utf-8")
    return genesis.mesh_id


def _token_counts(sources: Sequence[str], start: Start) -> dict[str, int]:
    counts: dict[str, int] = {}
    for source in sorted(set(sources)):
        tell("counting tokens, shards", len(counts), len(set(sources)))
        counts[source] = len(start.read(source).train)
    return counts


def first_anchor(model: FlatModel) -> Anchor:
    """Return the anchor of a model's weights; raises TrainingError where they do not fit one."""
    if model.size > PARAMETERS_MAX:
        raise TrainingError(f"{model.size} parameters to train, at most {PARAMETERS_MAX} are meant")
    named = model.names_and_shapes()
    pieces = torch.split(model.flat.detach(), [math.prod(shape) for _, shape in named])
    tensors = []
    for (name, shape), piece in zip(named, pieces, strict=True):
        try:
            bits = choose_fraction_bits(float(piece.abs().max()))
        except ValueError as error:
            raise TrainingError(f"tensor {name}: {error}") from None
        tensors.append(TensorSchema(name, tuple(shape), bits))
    return Anchor.from_weights(ModelSchema(tuple(tensors)), model.flat)
