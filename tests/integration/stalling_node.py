"""A real node whose event loop is blocked now and then: DIRECTORY SECONDS EVERY_S."""

import asyncio
import sys
import time
from pathlib import Path

import uvloop

from shoal.node.config import load_settings
from shoal.node.daemon import run_node
from shoal.node.log import configure_logging
from tests.integration.processes import QUICK


async def _run(directory: Path, seconds: float, every_s: float) -> int:
    loop = asyncio.get_running_loop()

    def block() -> None:
        loop.call_later(every_s, block)
        time.sleep(seconds)

    loop.call_later(every_s, block)
    overrides: dict[str, object] = {}
    for setting in QUICK:
        name, _, value = setting.partition("=")
        overrides[name] = float(value) if "." in value or "_s" in name else int(value)
    settings = load_settings(directory, overrides)
    configure_logging(level="info", output_format="json", node=settings.node.name)
    return await run_node(settings)


if __name__ == "__main__":
    sys.exit(uvloop.run(_run(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))))
