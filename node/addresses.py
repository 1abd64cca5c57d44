"""Addresses as people write them: host:port, and ID@host:port where it matters who answers."""

import ipaddress

DEFAULT_LISTEN = "127.0.0.1:7400"
DEFAULT_INSPECT = "127.0.0.1:7600"
DEFAULT_DASHBOARD = "127.0.0.1:7800"
DEFAULT_SERVE = "127.0.0.1:8000"
# Where a node's other listeners are unless they are set: so many ports above the members'.
JOIN_PORT_ABOVE = 100
INSPECT_PORT_ABOVE = 200
METRICS_PORT_ABOVE = 300

_ID_BYTES = 32


def parse_node_id(text: str) -> bytes:
    """An id as a person gives it: 64 hexadecimal digits; raises ValueError."""
    try:
        node_id = bytes.fromhex(text)
    except ValueError:
        node_id = b""
    if len(node_id) != _ID_BYTES or len(text) != 2 * _ID_BYTES:
        raise ValueError(f'"{text}" is not a node id, which has 64 hexadecimal digits')
    return node_id


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port"; raises ValueError for anything else."""
    host, separator, port = address.rpartition(":")
    if not (separator and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f'"{address}" is not host:port, like {DEFAULT_LISTEN}')
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if ":" in host:
        raise ValueError(f'"{address}": write an IPv6 address as [{host}]:{port}')
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address. A name other than localhost is not."""
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_wildcard(address: str) -> bool:
    """Whether it stands for every address of a machine: one can listen there, not be found."""
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def split_peer(text: str) -> tuple[bytes, str]:
    """Id and address of "ID@host:port"; raises ValueError for anything else."""
    node_id, separator, address = text.rpartition("@")
    if not separator:
        raise ValueError(f'"{text}" is not ID@host:port; `shoal identity show` tells a node\'s id')
    split_address(address)
    return parse_node_id(node_id), address


def port_above(address: str, above: int, *, host: str = "") -> str:
    """The address so many ports above, on the same host or another; port 0 stays any port.

    Raises ValueError where there is no such port.
    """
    own, port = split_address(address)
    if port + above > 65535:
        raise ValueError(f"there is no port {above} above {port}: set the address yourself")
    name = host or (f"[{own}]" if ":" in own else own)
    return f"{name}:{port + above if port else 0}"
