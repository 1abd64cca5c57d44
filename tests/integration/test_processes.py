"""The whole thing for real: four processes train and commit, one is killed with -9 and comes back,
a fifth joins by an invitation. One story, because starting processes is what takes the time."""

import subprocess
from pathlib import Path

import psutil
import pytest

from shoal.node.addresses import INSPECT_PORT_ABOVE, port_above
from shoal.node.config import load_settings
from shoal.node.invitations import INVITATION_NAME
from tests.integration.processes import (
    Process,
    command,
    invite,
    materialised_height,
    root_at,
    run_node,
    status,
    wait_until,
)
from tests.node.mesh import any_address, found_mesh

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("processes")]


def test_a_mesh_of_processes_lives_through_a_kill_and_a_join(tmp_path: Path) -> None:
    # Enough steps that a round takes a good part of a second, as small as the model is.
    directories = found_mesh(tmp_path / "mesh", local_steps=150, rounds_per_checkpoint=2)
    addresses = [load_settings(directory).node.inspect_listen for directory in directories]
    processes = [run_node(directory) for directory in directories]
    try:
        wait_until(lambda: all(materialised_height(a) >= 1 for a in addresses), processes)
        assert len({root_at(address, 1) for address in addresses}) == 1

        _one_is_killed_and_comes_back(processes, directories, addresses)
        _a_fifth_joins(processes, tmp_path / "fifth", addresses)

        codes = [process.stop() for process in processes]
        assert codes == [0] * 5, "SIGTERM ends a node in order"
    finally:
        for process in processes:
            if process.alive:
                process.kill()


def _one_is_killed_and_comes_back(
    processes: list[Process], directories: list[Path], addresses: list[str]
) -> None:
    victim = processes.pop()
    trainers = victim.children()
    assert trainers, "training runs in a child process"
    victim.kill()
    psutil.wait_procs(trainers, timeout=20)
    assert not any(trainer.is_running() for trainer in trainers), "no orphan is left"

    height = materialised_height(addresses[0])
    wait_until(lambda: all(materialised_height(a) >= height + 2 for a in addresses[:3]), processes)
    processes.append(run_node(directories[3]))
    wait_until(lambda: materialised_height(addresses[3]) >= height + 2, processes)
    target = materialised_height(addresses[0]) + 1
    wait_until(lambda: all(materialised_height(a) >= target for a in addresses), processes)
    assert len({root_at(address, target) for address in addresses}) == 1
    for process in processes:
        assert not process.events("evidence"), "nobody signed two things"
    boots = [line["boot"] for line in processes[3].events("node.starting")]
    assert boots == [1, 2], "it came back from its own disk"


def _a_fifth_joins(processes: list[Process], directory: Path, addresses: list[str]) -> None:
    listen = any_address()
    address = port_above(listen, INSPECT_PORT_ABOVE)
    contact = processes[0].directory
    source = load_settings(contact).train.data
    processes.append(
        Process(
            directory,
            "join",
            "--token",
            invite(contact),
            "--dir",
            directory,
            "--listen",
            listen,
            "--data",
            source,
        )
    )

    def learned_together() -> bool:
        reply = status(address)
        return reply is not None and reply.role == "member" and reply.training.round >= 2

    wait_until(learned_together, processes)
    assert not (directory / INVITATION_NAME).exists(), "it has served"
    everybody = [*addresses, address]
    target = materialised_height(addresses[0]) + 2
    wait_until(lambda: all(materialised_height(a) >= target for a in everybody), processes)
    assert len({root_at(a, target) for a in everybody}) == 1


def test_a_second_process_with_the_same_directory_is_refused(tmp_path: Path) -> None:
    (directory,) = found_mesh(tmp_path / "mesh", nodes=1)
    address = load_settings(directory).node.inspect_listen
    process = run_node(directory, "train.enabled=false")
    try:
        wait_until(lambda: status(address) is not None, [process])
        second = subprocess.run(
            command("run", directory), capture_output=True, text=True, timeout=120, check=False
        )
        assert second.returncode == 4
        assert "another process runs this node" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        process.stop()
