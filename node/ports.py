"""Finding loopback ports that nobody listens on."""

import socket
from contextlib import ExitStack

from shoal.node.addresses import INSPECT_PORT_ABOVE, JOIN_PORT_ABOVE, METRICS_PORT_ABOVE
from shoal.node.errors import UserError

_FIRST_PORT = 7400
_PORTS_TRIED = 1000


def free_address() -> str:
    """The first loopback port from 7400 up that a node can listen on."""
    for port in range(_FIRST_PORT, _FIRST_PORT + _PORTS_TRIED):
        with ExitStack() as held:
            if _hold(held, port) is not None:
                return f"127.0.0.1:{port}"
    raise UserError(f"no free port from {_FIRST_PORT} up; choose one with --listen HOST:PORT")


def free_ports(count: int) -> list[int]:
    """Loopback ports that nodes can listen on now, all different."""
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            port = _hold(held, 0)
            if port is not None:
                ports.append(port)
    return ports


def _hold(held: ExitStack, port: int) -> int | None:
    """Bind a port (0: any) and those of the node's other listeners; None if one is taken."""
    for above in (0, JOIN_PORT_ABOVE, INSPECT_PORT_ABOVE, METRICS_PORT_ABOVE):
        probe = held.enter_context(socket.socket())
        try:
            probe.bind(("127.0.0.1", port + above))
        except (OSError, OverflowError):
            return None
        if not port:
            port = int(probe.getsockname()[1])
    return port
