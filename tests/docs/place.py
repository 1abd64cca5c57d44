"""Where a reader of the pages sits: a directory with what they take for granted, free ports, and
a `shoal` that makes small meshes where a page does not say how large."""

import json
import os
import random
import re
import sys
from contextlib import ExitStack
from pathlib import Path

from shoal.node.ports import CHANCE_PORTS, free_ports, hold
from tests.docs.blocks import ROOT
from tests.node.mesh import TEXT, any_address
from tests.training.base_models import write_base
from tests.training.worker_process import TINY_MODEL

# Small and quick, in the places where an operator sets such things.
SETTINGS = {
    "SHOAL_TRAIN__BATCH": "2",
    "SHOAL_TRAIN__SEQUENCE": "16",
    "SHOAL_TRAIN__EVAL_BATCHES": "1",
    # A mesh that has rested answers sooner, and lets others have the machine.
    "SHOAL_TRAIN__MAX_ROUNDS": "12",
    "SHOAL_GOSSIP__SUMMARY_INTERVAL_S": "1",
    "SHOAL_CONSENSUS__BASE_TIMEOUT_S": "1",
    "SHOAL_CONSENSUS__CANDIDATE_TIMEOUT_S": "2",
    # The pages speak of checkpoint 3; this mesh is soon beyond it.
    "SHOAL_RETENTION__KEEP_WHOLE": "1000",
}
# With room for the texts that the pages ask for.
MODEL = {**TINY_MODEL, "max_position_embeddings": 128}
SMALLER = {"/media/stick/": "stick/", "--peers 64": "--peers 4 --rounds 2"}
SMALL_MESH = "[mesh]\nlocal_steps = 40\nrounds_per_checkpoint = 2\n"
SHOAL = """#!/bin/sh
given=" $* " more=""
unless_given() { case "$given" in *" $1 "*) ;; *) more="$more $*" ;; esac; }
case "$1" in
    init) unless_given --port "$FIRST_PORT"
          unless_given --model small/config.json; unless_given --preset small/mesh.toml ;;
    join) unless_given --listen "$FREE_ADDRESS" ;;
    serve) unless_given --listen "127.0.0.1:$SERVE_PORT" ;;
    dashboard) unless_given --listen "127.0.0.1:$DASHBOARD_PORT" ;;
esac
exec "$PYTHON" -m shoal.node "$@" $more
"""


def consecutive_ports(count: int) -> int:
    """The first of `count` loopback ports on which nodes can listen, with their other ports."""
    for first in random.sample(CHANCE_PORTS, 700):
        with ExitStack() as held:
            if all(hold(held, port) for port in range(first, first + count)):
                return first
    raise AssertionError("no free ports")


class Place:
    """The directory, and the names that are others here than on the page."""

    def __init__(self, home: Path) -> None:
        self.home = home
        # What commands have said: the line of an invitation, the id of who joined last.
        self.told: dict[str, str] = {}
        self._first_port = consecutive_ports(4)
        self._serve_port, self._dashboard_port = free_ports(2)
        for name in ("small", "bin", "my-texts", "stick"):
            (home / name).mkdir(parents=True)
        (home / "small" / "config.json").write_text(json.dumps(MODEL))
        (home / "small" / "mesh.toml").write_text(SMALL_MESH)
        (home / "config.json").write_text(json.dumps(MODEL))
        write_base(home / "base")
        for number in range(40):
            (home / "my-texts" / f"{number}.txt").write_text(f"Story {number}. " + TEXT * 20)
        shoal = home / "bin" / "shoal"
        shoal.write_text(SHOAL)
        shoal.chmod(0o755)
        for name in ("configs", "benchmarks", "Makefile"):
            (home / name).symlink_to(ROOT / name)
        (home / ".venv").symlink_to(sys.prefix)

    def translated(self, text: str) -> str:
        """The text of a page with the names of this place."""
        for shown, here in SMALLER.items():
            text = text.replace(shown, here)
        if "you.example.org:7400" in text:
            there = any_address()
            text = text.replace("you.example.org:7400", there).replace("0.0.0.0:7400", there)
        for name, value in self.told.items():
            text = re.sub(rf"\b{name}\b", value, text)
        for port, own in self._ports():
            text = re.sub(rf"(?<=:){port}\b", str(own), text)
        return text

    def environment(self, command: str) -> dict[str, str]:
        """Variables for a command. A mesh of other nodes than runs/mesh has ports of its own."""
        first = self._first_port if "runs/mesh" in command else consecutive_ports(4)
        return {
            **os.environ,
            **SETTINGS,
            "PATH": ":".join((str(self.home / "bin"), f"{sys.prefix}/bin", os.environ["PATH"])),
            "PYTHON": sys.executable,
            "FIRST_PORT": str(first),
            "FREE_ADDRESS": any_address(),
            "SERVE_PORT": str(self._serve_port),
            "DASHBOARD_PORT": str(self._dashboard_port),
            "COLUMNS": "100",
        }

    def _ports(self) -> list[tuple[int, int]]:
        nodes = [
            (7400 + above + number, self._first_port + above + number)
            for above in (0, 100, 200, 300)
            for number in range(4)
        ]
        return [*nodes, (8000, self._serve_port), (7800, self._dashboard_port)]
