"""`shoal doctor`: what is wrong with a node, its machine and its place in the mesh.

Every check is facts, which a collector gathers, and a judgement of them, which is a pure function.
Checks run at the same time and each has an end of its own, so that one dead disk or silent network
does not keep the others from being told. Nothing is changed by any of them.
"""

import asyncio
import importlib.metadata
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoal import __version__
from shoal.node import (
    doctor_disk,
    doctor_machine,
    doctor_mesh,
    doctor_network,
    doctor_peers,
    doctor_place,
    doctor_ports,
    doctor_torch,
)
from shoal.node.aside import aside
from shoal.node.config import CONFIG_NAME, Settings, load_settings
from shoal.node.doctor_findings import Finding, Report, fine, from_error, not_checked, problem
from shoal.node.errors import UserError
from shoal.node.identity import Identity, short
from shoal.node.wire import PROTOCOL_VERSION

# The places come first, as the others need them; then everything else at once.
PLACE_S_MAX = 3.0
CHECKS_S_MAX = 9.0
_PLACE = ("directory", "key", "key-backup", "votes", "genesis")
_DISK = ("disk-space", "file-system", "fsync")
_HERE = ("node", "listen", "join", "inspect", "metrics", "commits", "training")
_MEMBERS = ("quorum", "peers", "clock", "protocol", "advertised")
_NO_DIRECTORY = "no directory was named (shoal doctor DIR)"
_SLOW_DISK = "see the system's log for the disk, or whether the network file system is there"


@dataclass
class Patient:
    """What is known of the node that is looked at; without a directory, only its machine."""

    directory: Path | None
    settings: Settings = field(default_factory=Settings)
    identity: Identity | None = None
    genesis: doctor_place.GenesisFacts | None = None
    running: bool | None = None
    # Why nothing is known of it, "" where something is.
    unknown: str = ""
    # Whether its settings loaded; else those above are only the defaults, and nobody's.
    configured: bool = True

    @property
    def trains_task(self) -> bool:
        """Whether what it trains is not text."""
        return self.genesis is not None and self.genesis.task

    @property
    def parameters(self) -> int:
        """Of the model, 0 where that is not known."""
        return self.genesis.parameters if self.genesis is not None else 0

    @property
    def trains(self) -> bool:
        """Whether this node has a training process."""
        return self.settings.train.enabled


async def examine(
    directory: Path | None,
    *,
    clock: Callable[[], float] = time.time,
) -> Report:
    """Look at everything; takes less than 15 s. clock: seconds since 1970, as this machine says."""
    began = time.monotonic()
    patient, findings = await _places(directory)
    here: asyncio.Future[doctor_network.Here] = asyncio.get_running_loop().create_future()
    parts: list[Awaitable[list[Finding]]] = [
        _within(_of_disk(patient), CHECKS_S_MAX, _disk(patient)),
        _within(("torch", "device"), CHECKS_S_MAX + 1.0, _torch(patient)),
        _within(_HERE, CHECKS_S_MAX, _here(patient, clock, here)),
        _within(_MEMBERS, CHECKS_S_MAX, _members(patient, clock, here)),
        _machine(patient, here),
    ]
    for found in await asyncio.gather(*parts):
        findings += found
    if not patient.configured:
        patient.running = None
        findings = [_without_settings(each) for each in findings]
    genesis = patient.genesis
    return Report(
        directory=str(directory) if directory is not None else "",
        node_id=patient.identity.node_id.hex() if patient.identity is not None else "",
        mesh_id=genesis.mesh_id.hex() if genesis is not None else "",
        running=patient.running,
        seconds=time.monotonic() - began,
        findings=tuple(findings),
    )


def _without_settings(finding: Finding) -> Finding:
    """What was found of defaults says nothing of a node whose settings do not load."""
    if finding.check in (*_HERE, *_MEMBERS, "data", "disk-space", "device"):
        return not_checked(finding.check, "the settings do not load")
    return finding


async def _within(
    checks: Sequence[str], seconds: float, work: Awaitable[list[Finding]]
) -> list[Finding]:
    """The findings of some checks, or that they were not done in time."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        return [
            problem(each, f"the disk gave no answer in {seconds:.0f} s", _SLOW_DISK)
            if each == "directory"
            else not_checked(each, f"no answer in {seconds:.0f} s")
            for each in checks
        ]


async def _places(directory: Path | None) -> tuple[Patient, list[Finding]]:
    """What lies in the directory, and the settings."""
    if directory is None:
        patient = Patient(None, unknown=_NO_DIRECTORY)
        return patient, [not_checked(each, _NO_DIRECTORY) for each in ("configuration", *_PLACE)]
    patient = Patient(directory)
    try:
        findings = await aside(lambda: _read_places(patient, directory), PLACE_S_MAX)
    except TimeoutError:
        why = f"{directory} gave no answer in {PLACE_S_MAX:.0f} s"
        checks = ("configuration", *_PLACE[1:])
        return Patient(None, unknown=why), [
            *(not_checked(each, why) for each in checks),
            problem("directory", why, _SLOW_DISK),
        ]
    return patient, findings


def _read_places(patient: Patient, directory: Path) -> list[Finding]:
    findings = []
    try:
        # Named as a file, so that one that is not there is said so.
        patient.settings = load_settings(directory / CONFIG_NAME)
        findings.append(fine("configuration", f"{directory / CONFIG_NAME} loads"))
    except UserError as error:
        patient.configured = False
        findings.append(from_error("configuration", error, "correct that setting"))
    home = patient.settings.node.directory if _has_own(patient.settings) else directory
    patient.directory = home
    if not home.is_dir():
        why = f"there is no directory {home}"
        return [*findings, *(not_checked(each, why) for each in _PLACE[1:])]
    key, patient.identity = doctor_place.key_facts(home)
    patient.genesis = doctor_place.genesis_facts(home)
    findings += [
        doctor_place.judge_key(key),
        doctor_place.judge_votes(doctor_place.vote_facts(home)),
        doctor_place.judge_genesis(patient.genesis),
    ]
    if patient.identity is None:
        findings.append(not_checked("key-backup", "the key cannot be read"))
    else:
        findings.append(doctor_place.judge_backup(home, patient.identity.node_id))
    return findings


def _has_own(settings: Settings) -> bool:
    # A file's own directory is made absolute when it is read; the default is the empty path.
    return settings.node.directory != Path()


def _of_disk(patient: Patient) -> tuple[str, ...]:
    """The checks that _disk makes."""
    return ("data", *_DISK, *(("directory",) if patient.directory is not None else ()))


async def _disk(patient: Patient) -> list[Finding]:
    home, settings = patient.directory, patient.settings
    text = aside(lambda: doctor_place.text_facts(settings.train.data), CHECKS_S_MAX)
    place = home or Path.cwd()
    disk = aside(lambda: doctor_disk.disk_facts(place, count=home is not None), CHECKS_S_MAX)
    facts, words = await asyncio.gather(disk, text)
    findings = [
        doctor_place.judge_text(
            words, sequence=settings.train.sequence, enabled=settings.train.enabled
        )
        if home is not None and not patient.trains_task
        else not_checked("data", patient.unknown or "the mesh's task reads it, not the doctor")
    ]
    if home is not None:
        findings.append(doctor_disk.judge_directory(facts))
    if not facts.is_directory:
        return [*findings, *(not_checked(each, "there is no directory") for each in _DISK)]
    anchor_bytes = 4 * patient.parameters
    return [
        *findings,
        doctor_disk.judge_space(facts, anchor_bytes, settings.retention),
        doctor_disk.judge_file_system(facts),
        doctor_disk.judge_fsync(facts),
    ]


async def _torch(patient: Patient) -> list[Finding]:
    facts = await aside(lambda: doctor_torch.torch_facts(CHECKS_S_MAX), CHECKS_S_MAX + 1.0)
    device = patient.settings.train.device
    return [
        doctor_torch.judge_torch(facts),
        doctor_torch.judge_device(facts, device, patient.parameters, trains=patient.trains),
    ]


async def _machine(patient: Patient, here: "asyncio.Future[doctor_network.Here]") -> list[Finding]:
    findings = await aside(machine_findings, CHECKS_S_MAX)
    # Memory is judged by whether the node has its share already.
    await asyncio.wait((here,), timeout=CHECKS_S_MAX)
    running = here.result().running if here.done() and not here.cancelled() else None
    memory = doctor_machine.memory_facts()
    parameters, trains = patient.parameters, patient.trains
    return [
        *findings,
        doctor_machine.judge_memory(memory, parameters, trains=trains, running=running),
        doctor_machine.judge_shared_memory(memory, parameters, trains=trains, running=running),
    ]


def machine_findings() -> list[Finding]:
    """What is installed, whatever node it is for."""
    import apsw
    from google.protobuf.internal import api_implementation

    def version(name: str) -> str:
        return importlib.metadata.version(name)

    return [
        doctor_machine.judge_python(sys.version_info[:3]),
        doctor_machine.judge_libraries(doctor_machine.installed_libraries()),
        doctor_machine.judge_sqlite(apsw.sqlite_lib_version()),
        doctor_machine.judge_protobuf(api_implementation.Type(), version("protobuf")),
        doctor_machine.judge_signatures(
            doctor_machine.check_signatures(),
            f"pynacl {version('pynacl')} (libsodium), cryptography {version('cryptography')}",
        ),
        doctor_machine.judge_open_files(doctor_machine.open_files_limit()),
    ]


async def _here(
    patient: Patient,
    clock: Callable[[], float],
    here: "asyncio.Future[doctor_network.Here]",
) -> list[Finding]:
    """The ports, and what the node says itself where it runs."""
    identity, settings = patient.identity, patient.settings
    seen = await doctor_network.look_here(settings.node, identity, clock())
    patient.running = seen.running
    here.set_result(seen)
    me = identity.node_id if identity is not None else b""
    findings = [doctor_ports.judge_port(each, me, running=seen.running) for each in seen.ports]
    findings.append(_node(patient))
    if seen.status is None:
        why = _no_status(patient, seen)
        return [*findings, *(not_checked(each, why) for each in ("commits", "training"))]
    mesh = doctor_network.mesh_facts(seen.status, settings)
    return [
        *findings,
        doctor_mesh.judge_commits(mesh),
        doctor_mesh.judge_training(mesh),
    ]


def _no_status(patient: Patient, seen: doctor_network.Here) -> str:
    if patient.unknown:
        return patient.unknown
    return "this node does not run" if seen.running is False else "its status is not known"


def _node(patient: Patient) -> Finding:
    if patient.running is None:
        why = "its key cannot be read, so nobody knows whether it runs"
        return not_checked("node", patient.unknown or why)
    return fine("node", "it runs" if patient.running else "it does not run now")


async def _members(
    patient: Patient,
    clock: Callable[[], float],
    here: "asyncio.Future[doctor_network.Here]",
) -> list[Finding]:
    """What other members say; the running node knows best where they are."""
    settings, identity = patient.settings, patient.identity
    if identity is None:
        why = patient.unknown or "without the node's key no member answers"
        return [not_checked(each, why) for each in _MEMBERS]
    seen = await asyncio.shield(here)
    founders = patient.genesis.founders if patient.genesis is not None else ()
    asked = doctor_network.members_to_ask(identity.node_id, seen.status, settings, founders)
    peers = await asyncio.gather(
        *(doctor_network.ask_member(*each, identity, clock) for each in asked)
    )
    silent = {short(each.node_id) for each in peers if not each.answers}
    quorum = (
        doctor_mesh.judge_quorum(doctor_network.mesh_facts(seen.status, settings), silent)
        if seen.status is not None
        else not_checked("quorum", _no_status(patient, seen))
    )
    refused = doctor_network.refused_for_protocol(seen.status)
    alone = not asked and bool(founders)
    advertised = settings.node.advertised
    return [
        quorum,
        doctor_peers.judge_peers(peers, alone=alone, running=seen.running),
        doctor_peers.judge_clock(peers),
        doctor_peers.judge_protocol(peers, PROTOCOL_VERSION, __version__, refused),
        doctor_peers.judge_advertised(peers, advertised, running=seen.running),
    ]
