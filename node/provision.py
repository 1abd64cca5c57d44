"""Making the directories that `shoal run` starts from: a whole mesh's, or one joiner's."""

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from shoal.consensus.invitations import Invitation
from shoal.node.addresses import parse_node_id, split_address
from shoal.node.clock import now_ms
from shoal.node.config import CONFIG_NAME, Settings, load_settings, setting_names
from shoal.node.errors import UserError
from shoal.node.founding import Start, create_mesh, node_sources
from shoal.node.genesis import load_genesis, parse_document
from shoal.node.hub import local_data, local_model
from shoal.node.identity import Identity
from shoal.node.invitations import (
    keep_invitation,
    kept_invitation,
    parse_line,
    require_current,
)
from shoal.node.link_budget import meaning, measure_work, with_budget
from shoal.node.parameters import MeshParameters
from shoal.node.ports import free_address
from shoal.node.presets import Preset, apply_preset, check_names, load_preset
from shoal.node.sources import absolute_source, token_cache
from shoal.training.adapters import Lora, base_files
from shoal.training.errors import TrainingError

_MODEL_FILE_BYTES_MAX = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class MadeMesh:
    """A mesh that has been made: its nodes' directories and ids."""

    mesh_id: str
    directories: list[Path]
    ids: list[str]
    # What its budget comes to.
    says: str

    def lines(self) -> list[str]:
        """What a person should know, and do next."""
        first = self.directories[0]
        return [
            f"mesh {self.mesh_id}",
            *(f"{node.name} {i}" for node, i in zip(self.directories, self.ids, strict=True)),
            f"budget: {self.says}",
            *(f"start:  shoal run {node}" for node in self.directories),
            f"invite: shoal invite {first}, when it runs: it prints what a newcomer joins with",
            f"keep:   shoal identity export {first} FILE, on another disk; each node's",
        ]

    def as_plain(self) -> dict[str, object]:
        """The same for a program."""
        nodes = [
            {"name": node.name, "node_id": node_id, "directory": str(node)}
            for node, node_id in zip(self.directories, self.ids, strict=True)
        ]
        return {"mesh_id": self.mesh_id, "nodes": nodes, "budget": self.says}


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
    budget: str | None = None,
    task: str | None = None,
) -> MadeMesh:
    """Create directory/node0 and so on.

    host: "{index}" in it is the node's number; then all have the same port.
    flags: further settings by dotted name, for each node.toml.
    budget: bytes per parameter and round, or a link's speed (link_budget.py); else the preset's.
    model: a file, a directory or hub:NAME (hub.py); of a task, the file of its configuration.
    Raises UserError when there is a mesh already, or an input cannot be read.
    """
    made = [directory / f"node{index}" for index in range(nodes)]
    _require_new(directory, made, host, port)
    chosen = load_preset(preset)
    check_names("--set ", flags, setting_names())
    model = local_model(model)
    base = model.resolve() if model is not None and model.is_dir() else None
    _require_own_module(task, base, chosen)
    config = read_model_config(model if base is None else base / "config.json")
    lora = chosen_adapters(chosen, str(preset), base)
    source = absolute_source(data)
    parameters = mesh_parameters(chosen, str(preset))
    optimiser_is_open = "muon_scale" not in chosen.mesh
    if (base is not None or task is not None) and optimiser_is_open:
        # What AdamW has trained is best trained on by AdamW (Liu et al. 2025, 3.5). Of a task's
        # module nobody knows which matrices lie between its ends.
        parameters = dataclasses.replace(parameters, muon_scale=0.0)
    planned = planned_settings(preset, flags)
    cache = token_cache(planned.train, directory)
    if budget is not None:
        start = partial(Start.of, config, base, lora, task, cache)
        first = node_sources(source, nodes)[0]
        measure = partial(measure_work, start, first, planned.train)
        parameters = with_budget(
            parameters, budget, nodes, measure, choose_optimiser=optimiser_is_open
        )
    mesh_id = create_mesh(
        directory,
        nodes=nodes,
        host=host,
        ports=list(range(port, port + nodes)),
        data=source,
        model_config=config,
        parameters=parameters,
        seed=seed,
        names=[node.name for node in made],
        base=base,
        lora=lora,
        task=task,
        token_cache=cache,
    )
    for node in made:
        apply_preset(chosen, node, flags)
    ids = [Identity.load(node / "identity.key").node_id.hex() for node in made]
    genesis = parse_document((made[0] / "genesis" / "genesis.json").read_bytes())
    says = meaning(parameters, nodes, genesis.schema.layout.total)
    return MadeMesh(mesh_id.hex(), made, ids, says)


def _require_new(directory: Path, made: list[Path], host: str, port: int) -> None:
    # Empty directories are welcome: in containers they are mount points.
    if any(node.exists() and any(node.iterdir()) for node in made):
        raise UserError(
            f"{directory} holds a mesh already, and its keys would be lost; name a new directory"
        )
    if "{index}" not in host and port + len(made) - 1 > 65535:
        raise UserError(f"--port {port}: {len(made)} nodes need ports up to {port + len(made) - 1}")


def join_and_configure(
    address: str | None,
    directory: Path,
    *,
    token: str | None,
    trust_id: str | None,
    first_use: bool,
    mesh_id: str | None,
    data: str,
    listen: str | None,
    advertise: str,
    preset: Path | None,
    flags: Mapping[str, object],
) -> Settings:
    """Fetch a mesh into a directory by an invitation and write its node.toml, which comes last.

    A join that was cut off is gone on with by the same call, with the same key, or without the
    token, which is kept. A node that is there already gets the new invitation. flags: further
    settings by dotted name, kept in the node.toml as well.

    Raises UserError for wrong input, before anybody is asked, and when the mesh is not the one
    that was named; NotAdmittedError for an invitation that has expired or is from another history;
    UnreachableError when nobody answers.
    """
    from shoal.node.join import is_sound_address, join_mesh

    is_node = (directory / CONFIG_NAME).exists()
    if is_node and token is None:
        raise UserError(f"{directory} is a node already; start it with: shoal run {directory}")
    invitation = _invitation(token, directory)
    contact = _who_must_answer(invitation, address, trust_id, first_use=first_use)
    if address is None and not is_sound_address(invitation.hint):
        raise UserError(
            "the invitation names no address; say where a member takes newcomers: shoal join "
            "ADDRESS --token LINE --dir DIR"
        )
    address = address or invitation.hint
    try:
        split_address(address)
    except ValueError as error:
        raise UserError(str(error)) from None
    if mesh_id is not None and mesh_id.lower() != invitation.mesh_id.hex():
        raise UserError(
            f"wrong mesh: the invitation is to {invitation.mesh_id.hex()}, not to {mesh_id}; ask "
            "for one to that mesh"
        )
    require_current(invitation, now_ms())
    if is_node:
        return _invited_again(directory, invitation)
    local_data(data)
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
            invitation=invitation,
            contact=contact,
            preset=chosen,
            flags=flags,
        )
    )
    return load_settings(directory)


def planned_settings(preset: Path | None, flags: Mapping[str, object]) -> Settings:
    """What the settings of a node will be, as far as its directory does not matter; raises
    UserError."""
    return load_settings(None, {**load_preset(preset).settings, **flags})


def _invitation(token: str | None, directory: Path) -> Invitation:
    """The one that was given, or the one that an earlier try kept; raises UserError."""
    found = parse_line(token) if token is not None else kept_invitation(directory)
    if found is None:
        raise UserError(
            "say who invites this node: ask a member's operator for the line that `shoal invite` "
            "prints there, then: shoal join --token LINE --dir DIR"
        )
    return found


def _who_must_answer(
    invitation: Invitation, address: str | None, trust_id: str | None, *, first_use: bool
) -> bytes | None:
    """The inviter, or another member that was named; None for whoever does. Raises UserError."""
    if trust_id is not None and first_use:
        raise UserError("say either who must answer (--trust-id) or that anybody may, not both")
    if trust_id is not None and address is None:
        raise UserError("say where that member answers: shoal join ADDRESS --trust-id ID ...")
    try:
        trusted = parse_node_id(trust_id) if trust_id is not None else invitation.inviter
    except ValueError as error:
        raise UserError(str(error)) from None
    return None if first_use else trusted


def _invited_again(directory: Path, invitation: Invitation) -> Settings:
    """A node that left, or whose invitation was of no use, gets a new one; raises UserError."""
    genesis, _, _ = load_genesis(directory / "genesis")
    if genesis.mesh_id != invitation.mesh_id:
        raise UserError(
            f"{directory} is a node of mesh {genesis.mesh_id.hex()}, and the invitation is to "
            f"{invitation.mesh_id.hex()}; name a new directory"
        )
    keep_invitation(directory, invitation)
    return load_settings(directory)


def mesh_parameters(preset: Preset, where: str) -> MeshParameters:
    """The defaults with the preset's [mesh] over them; raises UserError for a bad one."""
    known = [field.name for field in dataclasses.fields(MeshParameters)]
    check_names(f"{where}: [mesh] ", preset.mesh, known)
    parameters = MeshParameters(**preset.mesh)
    if problems := parameters.problems():
        raise UserError(f"{where}: [mesh] {problems[0]}")
    return parameters


def chosen_adapters(preset: Preset, where: str, base: Path | None) -> Lora | None:
    """The preset's [lora] with the base that it is for, None without one; raises UserError."""
    if not preset.lora:
        return None
    if base is None:
        raise UserError(f"{where}: [lora] adapts a model; name its directory with --model")
    known = ["rank", "alpha", "target_modules", "base"]
    check_names(f"{where}: [lora] ", preset.lora, known)
    try:
        files = base_files(base)
        return Lora.from_json({"base": base.name, **preset.lora, "base_files": files})
    except TrainingError as error:
        raise UserError(f"{where}: [lora] {error}") from None


def _require_own_module(task: str | None, base: Path | None, preset: Preset) -> None:
    if task is not None and (base is not None or preset.lora):
        raise UserError(
            f"--task {task}: a task has a module of its own; leave [lora] out, and give --model "
            "the JSON file of the task's configuration, if it has one"
        )


def base_setting(base: Path | None) -> str | None:
    """`base` under [train], of a directory or hub:NAME; raises as `local_model`."""
    found = local_model(base)
    return None if found is None else str(found.resolve())


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
