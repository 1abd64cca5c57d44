"""A real node whose event loop is blocked now and then: DIRECTORY SECONDS EVERY_S [SETTING...]."""

import asyncio
import sys
import time
from pathlib import Path

from shoal.node.cli_options import parse_overrides
from shoal.node.config import Settings, load_settings
from shoal.node.trainer_child import TrainerChild, training_child
from tests.integration.processes import QUICK


def _run(settings: Settings, child: TrainerChild | None, seconds: float, every_s: float) -> int:
    # After the fork, as the command does it.
    import uvloop

    from shoal.node.daemon import run_node
    from shoal.node.log import configure_logging

    async def work() -> int:
        loop = asyncio.get_running_loop()

        def block() -> None:
            loop.call_later(every_s, block)
            time.sleep(seconds)

        loop.call_later(every_s, block)
        return await run_node(settings, child)

    configure_logging(level="info", output_format="json", node=settings.node.name)
    return uvloop.run(work())


if __name__ == "__main__":
    where, blocked, period, *extra = sys.argv[1:]
    wanted = load_settings(Path(where), parse_overrides([*QUICK, *extra]))
    with training_child(wanted.train) as started:
        sys.exit(_run(wanted, started, float(blocked), float(period)))
