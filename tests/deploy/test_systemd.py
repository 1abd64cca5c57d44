"""The unit as systemd itself reads and judges it, and as the exit codes of a node want it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.node.errors import BAD_INPUT, DAMAGED

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = UNITS / "shoal@.service"
# What `systemd-analyze security` calls "OK" ends at 5.0; a bare unit has 9.6, this one 1.4.
EXPOSURE_MAX = 2.0

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="*** NO systemd-analyze HERE: nothing has read deploy/systemd ***",
)


def analyse(*words: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *words], capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is on this machine, as systemd wants to see one."""
    placed = tmp_path / UNIT.name
    placed.write_text(UNIT.read_text().replace("/opt/shoal/bin/shoal", sys.executable))
    return placed


@needs_systemd
def test_systemd_understands_every_line_of_it(unit: Path) -> None:
    assert analyse("verify", str(unit)) == ""
    drop_in = unit.parent / "shoal@.service.d" / "cuda.conf"
    drop_in.parent.mkdir()
    drop_in.write_text((UNITS / "cuda.conf").read_text())
    assert analyse("verify", str(unit)) == ""


@needs_systemd
def test_the_check_sees_a_slip(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSytem=strict"))
    assert "ProtectSytem" in analyse("verify", str(unit))


@needs_systemd
def test_it_is_exposed_to_little(unit: Path) -> None:
    said = analyse("security", "--offline=true", "--no-pager", str(unit))
    found = re.search(r"exposure level for .*: ([0-9.]+)", said)
    assert found is not None and float(found[1]) <= EXPOSURE_MAX, said


def test_what_trying_again_does_not_mend_is_not_tried_again() -> None:
    text = UNIT.read_text()
    assert f"RestartPreventExitStatus={BAD_INPUT} {DAMAGED}\n" in text
    assert "Restart=on-failure\n" in text
