"""One structured line per change of state, for people on a terminal and for machines in JSON."""

import logging
import os
import sys
from typing import Literal

import structlog

Format = Literal["auto", "json", "console"]
LEVELS = ("debug", "info", "warning", "error")


def configure_logging(*, level: str, output_format: Format, node: str) -> None:
    """Send log lines to stderr: coloured text on a terminal, JSON elsewhere unless told."""
    as_json = output_format == "json" or (output_format == "auto" and not sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=_is_coloured())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(node=node)


def _is_coloured() -> bool:
    """As rich judges for everything else that is printed."""
    dumb = os.environ.get("TERM", "") in ("dumb", "unknown")
    return sys.stderr.isatty() and not dumb and not os.environ.get("NO_COLOR")
