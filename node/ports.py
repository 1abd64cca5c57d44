"""Finding loopback ports that nobody listens on."""

import random
import socket
from contextlib import ExitStack

from shoal.node.addresses import INSPECT_PORT_ABOVE, JOIN_PORT_ABOVE, METRICS_PORT_ABOVE
from shoal.node.errors import UserError

_FIRST_PORT = 7400
_PORTS_TRIED = 1000
# Below those that systems hand out to whoever connects, so that nobody has taken one in between.
CHANCE_PORTS = range(16_000, 32_000)


def free_address() -> str:
    """The first loopback port from 7400 up that a node can listen on."""
    for port in range(_FIRST_PORT, _FIRST_PORT + _PORTS_TRIED):
        with ExitStack() as held:
            if hold(held, port):
                return f"127.0.0.1:{port}"
    raise UserError(f"no free port from {_FIRST_PORT} up; choose one with --listen HOST:PORT")


def free_ports(count: int) -> list[int]:
    """Loopback ports that nodes can listen on now, all different."""
    chance = random.SystemRandom()
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            port = chance.choice(CHANCE_PORTS)
            if hold(held, port):
                ports.append(port)
    return ports


def hold(held: ExitStack, port: int) -> bool:
    """Bind a port and those of the node's other listeners; whether none of them is taken."""
    for above in (0, JOIN_PORT_ABOVE, INSPECT_PORT_ABOVE, METRICS_PORT_ABOVE):
        probe = held.enter_context(socket.socket())
        try:
            probe.bind(("127.0.0.1", port + above))
        except (OSError, OverflowError):
            return False
    return True
