"""Founding a mesh: the first weights, the genesis, and a directory for each founder."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shoal.gossip.anchor import Anchor
from shoal.gossip.schema import ModelSchema, TensorSchema, choose_fraction_bits
from shoal.node.config import CONFIG_NAME, document_settings
from shoal.node.errors import PeerError, UserError
from shoal.node.genesis import (
    Founder,
    MeshParameters,
    check_tokenizer_names,
    make_document,
    parse_document,
    write_genesis,
)
from shoal.node.identity import Identity
from shoal.training.data import load
from shoal.training.errors import TrainingError
from shoal.training.model import FlatModel, build_model, default_config, with_mask_token
from shoal.training.tokenizer import ByteTokenizer


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
) -> bytes:
    """Make `directory/NAME` for each founder, with a key, a node.toml and the genesis.

    data: as in `node_sources`.
    Returns the mesh id. Raises UserError in one line where the model or the data is wrong; then
    nothing has been written.
    """
    addresses = node_addresses(host, ports)
    sources = node_sources(data, nodes)
    tokenizer = ByteTokenizer()
    files = tokenizer.files()
    try:
        check_tokenizer_names(files)
        chosen = model_config if model_config is not None else default_config()
        config = with_mask_token(chosen, tokenizer)
        anchor = first_anchor(config, seed)
        tokens = {source: len(load(source, tokenizer).train) for source in sorted(set(sources))}
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
        model_config=config,
        parameters=parameters,
        founders=founders,
        anchor_root=anchor.root(),
        tokenizer_files=files,
    )
    genesis = parse_document(document)
    for index, name in enumerate(names):
        write_genesis(directory / name / "genesis", genesis, anchor, files)
        _write_settings(directory / name, name, addresses[index], sources[index], seed + index)
    return genesis.mesh_id


def first_anchor(config: Mapping[str, Any], seed: int) -> Anchor:
    """Return the anchor of a freshly initialised model; raises TrainingError."""
    model = FlatModel(build_model(config, seed))
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


def _write_settings(directory: Path, name: str, address: str, data: str, seed: int) -> None:
    values: dict[str, object] = {
        "node.name": name,
        "node.listen": address,
        "node.advertise": address,
        "train.data": data,
        "train.seed": seed,
    }
    (directory / CONFIG_NAME).write_text(document_settings(values), encoding="utf-8")
