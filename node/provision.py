"""Making the directories that `shoal run` starts from: a whole mesh's, or one joiner's."""

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.node.addresses import parse_node_id, split_address
from shoal.node.config import CONFIG_NAME, Settings, load_settings, setting_names
from shoal.node.errors import UserError
from shoal.node.founding import create_mesh
from shoal.node.genesis import MeshParameters
from shoal.node.identity import Identity
from shoal.node.ports import free_address
from shoal.node.presets import Preset, apply_preset, check_names, load_preset

_MODEL_FILE_BYTES_MAX = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class MadeMesh:
    """A mesh that has been made: the first node's join port and id let others in."""

    mesh_id: str
    directories: list[Path]
    contact: str
    contact_id: str


def make_mesh(
    directory: Path,
    *,
    nodes: int,
    host: str,
    port: int,
    data: str,
    model: Path | None,
    seed: int,
    preset: Path | None,
    flags: Mapping[str, object],
) -> MadeMesh:
    """Create directory/node0 and so on.

    host: "{index}" in it is the node's number; then all have the same port.
    flags: further settings by dotted name, for each node.toml.
    Raises UserError when there is a mesh already, or an input cannot be read.
    """
    made = [directory / f"node{index}" for index in range(nodes)]
    # Empty directories are welcome: in containers they are mount points.
    if any(node.exists() and any(node.iterdir()) for node in made):
        raise UserError(
            f"{directory} holds a mesh already, and its keys would be lost; name a new directory"
        )
    if "{index}" not in host and port + nodes - 1 > 65535:
        raise UserError(f"--port {port}: {nodes} nodes need ports up to {port + nodes - 1}")
    chosen = load_preset(preset)
    check_names("--set ", flags, setting_names())
    mesh_id = create_mesh(
        directory,
        nodes=nodes,
        host=host,
        ports=list(range(port, port + nodes)),
        data=absolute_source(data),
        model_config=read_model_config(model),
        parameters=mesh_parameters(chosen, str(preset)),
        seed=seed,
        names=[node.name for node in made],
    )
    for node in made:
        apply_preset(chosen, node, flags)
    contact = Identity.load(made[0] / "identity.key").node_id.hex()
    address = load_settings(made[0]).node.join_advertised
    return MadeMesh(mesh_id.hex(), made, address, contact)


def join_and_configure(
    address: str,
    directory: Path,
    *,
    trust_id: str | None,
    first_use: bool,
    mesh_id: str | None,
    data: str,
    listen: str | None,
    advertise: str,
    preset: Path | None,
    flags: Mapping[str, object],
) -> Settings:
    """Fetch the mesh from `address` into a directory and write its node.toml, which comes last.

    A join that was cut off is gone on with by the same call, with the same key. flags: further
    settings by dotted name, kept in the node.toml as well.

    Raises UserError for wrong input, before anybody is asked, and when the mesh is not the one
    that was named; UnreachableError when nobody answers.
    """
    from shoal.node.join import join_mesh

    try:
        split_address(address)
        trusted = parse_node_id(trust_id) if trust_id is not None else None
    except ValueError as error:
        raise UserError(str(error)) from None
    if (trusted is None) != first_use:
        raise UserError(
            "say who must answer there with --trust-id ID, which `shoal init` and `shoal identity "
            "show` print on the other side; or, but whoever is on the path can then pretend to be "
            "the mesh, --insecure-first-use"
        )
    if (directory / CONFIG_NAME).exists():
        raise UserError(f"{directory} is a node already; start it with: shoal run {directory}")
    chosen = load_preset(preset)
    listen = listen or free_address()
    wanted = {"node.listen": listen, "node.advertise": advertise}
    load_settings(None, {**chosen.settings, **wanted, **flags})
    asyncio.run(
        join_mesh(
            address,
            directory,
            listen=listen,
            advertise=advertise,
            data=absolute_source(data),
            mesh_id=mesh_id,
            contact=trusted,
            preset=chosen,
            flags=flags,
        )
    )
    return load_settings(directory)


def planned_settings(preset: Path | None, flags: Mapping[str, object]) -> Settings:
    """What the settings of a node will be, as far as its directory does not matter; raises
    UserError."""
    return load_settings(None, {**load_preset(preset).settings, **flags})


def absolute_source(data: str) -> str:
    """The same text wherever it is named from: a path from here, made absolute."""
    return data if data.startswith("builtin") else str(Path(data).resolve())


def mesh_parameters(preset: Preset, where: str) -> MeshParameters:
    """The defaults with the preset's [mesh] over them; raises UserError for a bad one."""
    known = [field.name for field in dataclasses.fields(MeshParameters)]
    check_names(f"{where}: [mesh] ", preset.mesh, known)
    parameters = MeshParameters(**preset.mesh)
    if problems := parameters.problems():
        raise UserError(f"{where}: [mesh] {problems[0]}")
    return parameters


def read_model_config(path: Path | None) -> dict[str, Any] | None:
    """A transformers config.json, or None for the default model; raises UserError."""
    if path is None:
        return None
    try:
        if path.stat().st_size > _MODEL_FILE_BYTES_MAX:
            raise UserError(f"{path}: larger than 1 MiB, so it is not a model's config.json")
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a transformers config.json") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object; name a transformers config.json")
    return config
