"""Finding loopback ports that nobody listens on."""

import socket

from shoal.node.errors import UserError

_FIRST_PORT = 7400
_PORTS_TRIED = 1000


def free_address() -> str:
    """The first loopback port from 7400 up that nobody listens on."""
    for port in range(_FIRST_PORT, _FIRST_PORT + _PORTS_TRIED):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return f"127.0.0.1:{port}"
    raise UserError(f"no free port from {_FIRST_PORT} up; choose one with --listen HOST:PORT")


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
