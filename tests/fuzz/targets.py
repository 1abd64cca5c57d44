"""The fuzz targets: what each is called, what runs it, what it starts from.

A target takes any bytes. The exceptions that are documented for what it calls are part of its
answer; every other one is a finding. `python -m tests.fuzz` gives them to a coverage-guided fuzzer,
test_targets.py to hypothesis and, again and again, everything that has ever crashed one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import consensus_targets, file_targets, token_target, wire_targets

CRASHERS = Path(__file__).parent / "crashers"


@dataclass(frozen=True, slots=True)
class Target:
    """run: takes any bytes; seeds: valid examples, made by the real code; bytes_max: longer inputs
    are not tried."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    bytes_max: int = 4096


TARGETS = {
    "link": Target(wire_targets.link, wire_targets.link_seeds),
    "bulk": Target(wire_targets.bulk, wire_targets.bulk_seeds),
    "message": Target(consensus_targets.message, consensus_targets.message_seeds),
    "replica": Target(consensus_targets.replica, consensus_targets.replica_seeds, 8192),
    "certificate": Target(consensus_targets.certificate, consensus_targets.certificate_seeds),
    "epochs": Target(consensus_targets.epochs, consensus_targets.epochs_seeds),
    "ledger": Target(consensus_targets.ledger, consensus_targets.ledger_seeds),
    "operation": Target(consensus_targets.operation, consensus_targets.operation_seeds),
    "token": Target(token_target.token, token_target.token_seeds, 2048),
    "manifest": Target(wire_targets.manifest, wire_targets.manifest_seeds, 1024),
    "delta": Target(wire_targets.delta, wire_targets.delta_seeds),
    "streams": Target(wire_targets.streams, wire_targets.streams_seeds),
    "genesis": Target(file_targets.genesis, file_targets.genesis_seeds, 8192),
    "settled": Target(file_targets.settled, file_targets.settled_seeds),
    "identity": Target(file_targets.identity, file_targets.identity_seeds, 1024),
    "config": Target(file_targets.config, file_targets.config_seeds, 8192),
}


def crashers(name: str) -> list[Path]:
    """What has crashed this target before."""
    return sorted((CRASHERS / name).glob("*.bin"))
