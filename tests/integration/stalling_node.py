"""A real node whose event loop is blocked now and then: DIRECTORY SECONDS EVERY_S [SETTING...]."""

import asyncio
import sys
import time
from pathlib import Path

import uvloop

from shoal.node.cli_options import parse_overrides
from shoal.node.config import load_settings
from shoal.node.daemon import run_node
from shoal.node.log import configure_logging
from shoal.node.trainer_child import training_child
from tests.integration.processes import QUICK


async def _run(directory: Path, seconds: float, every_s: float, extra: list[str]) -> int:
    loop = asyncio.get_running_loop()

    def block() -> None:
        loop.call_later(every_s, block)
        time.sleep(seconds)

    loop.call_later(every_s, block)
    overrides = parse_overrides([*QUICK, *extra])
    settings = load_settings(directory, overrides)
    configure_logging(level="info", output_format="json", node=settings.node.name)
    with training_child(settings.train) as child:
        return await run_node(settings, child)


if __name__ == "__main__":
    where, blocked, period, *settings = sys.argv[1:]
    sys.exit(uvloop.run(_run(Path(where), float(blocked), float(period), settings)))
