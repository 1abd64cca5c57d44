"""The demo's newcomer: invited with one line, joined with one command, as a person would.

It comes when the others have made their rounds, so that what is measured is what joining takes and
not what four trainings leave of two cores.
"""

import asyncio
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from shoal.node.demo_processes import LOG_NAME, clean_environment
from shoal.node.errors import UserError

NAME = "newcomer"
# Ends a demo that hangs, not one on a busy machine.
JOIN_SECONDS = 120.0
LOOK_SECONDS = 0.05
# What a node logs when it has made its first delta (node/round.py).
FIRST_DELTA = '"delta.first"'


async def join_one_more(contact: Path, directory: Path) -> float:
    """Have the running node in `contact` invite a node, which joins from `directory`.

    Returns the seconds from the start of `shoal join` to the newcomer's first delta; raises
    UserError where that does not come. The newcomer is ended.
    """
    line = await asyncio.to_thread(_invitation, contact)
    log = await asyncio.to_thread(_make_log, directory)
    command = [sys.executable, "-m", "shoal.node", "join", "--token", line]
    command += ["--dir", str(directory), "--data", "builtin:0/5", "--set", "train.max_rounds=1"]
    with log:
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=clean_environment(),
            start_new_session=True,
        )
    try:
        return await _first_delta(process, directory / LOG_NAME, began)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _make_log(directory: Path) -> IO[bytes]:
    directory.mkdir()
    return (directory / LOG_NAME).open("wb")


def _invitation(contact: Path) -> str:
    made = subprocess.run(
        [sys.executable, "-m", "shoal.node", "invite", str(contact)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise UserError(f"{contact.name} does not invite: {made.stderr.strip()}")
    return made.stdout.strip()


async def _first_delta(process: asyncio.subprocess.Process, log: Path, began: float) -> float:
    while time.monotonic() - began < JOIN_SECONDS:
        ended = process.returncode is not None
        said = await asyncio.to_thread(log.read_text, errors="replace")
        if FIRST_DELTA in said:
            return time.monotonic() - began
        if ended:
            raise UserError(f"the newcomer ended: {said.strip().rpartition(chr(10))[2]}")
        await asyncio.sleep(LOOK_SECONDS)
    raise UserError(f"the newcomer made no delta in {JOIN_SECONDS:.0f} s")
