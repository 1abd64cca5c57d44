"""Bombs are refused before they go off: within 50 ms of CPU and 64 MiB of memory, measured.

CPU time and not the clock's, because other tests run beside this one.
"""

import json
import subprocess
import sys

import pytest

from tests.abuse.bombs import BOMBS

CPU_MS_MAX = 50.0
GROWTH_MIB_MAX = 64.0


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, object]]:
    command = [sys.executable, "-m", "tests.abuse.bombs"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["bomb"]: line for line in lines}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_go_off(name: str, measured: dict[str, dict[str, object]]) -> None:
    found = measured.get(name)
    assert found is not None, "the process that lit it was ended"
    assert found["refused"] or found["harmless"]
    assert float(str(found["cpu_ms"])) < CPU_MS_MAX, found
    assert float(str(found["growth_mib"])) < GROWTH_MIB_MAX, found
