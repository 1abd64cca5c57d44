"""A channel whose answers are screened before anybody sees them (screen.py, strict.py)."""

from collections.abc import Mapping
from typing import Any

import grpc

from shoal.node.screen import Screen


class StrictChannel:
    """A channel whose answers are screened: as much of one as the generated stubs ask for."""

    def __init__(self, channel: grpc.aio.Channel, screens: Mapping[str, Screen[Any]]) -> None:
        """screens: what reads the answers to each method; those without one have no repeated
        field, so that the transport's limit is enough."""
        self._channel = channel
        self._screens = screens

    def unary_unary(self, method: str, **how: Any) -> object:
        return self._channel.unary_unary(method, **self._strictly(method, how))

    def unary_stream(self, method: str, **how: Any) -> object:
        return self._channel.unary_stream(method, **self._strictly(method, how))

    def stream_stream(self, method: str, **how: Any) -> object:
        return self._channel.stream_stream(method, **self._strictly(method, how))

    def _strictly(self, method: str, how: dict[str, Any]) -> dict[str, Any]:
        screen = self._screens.get(method)
        return how if screen is None else {**how, "response_deserializer": screen.receive}
