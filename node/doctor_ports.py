"""The listeners: free, this node's, or somebody else's (`shoal doctor`)."""

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from shoal.node.addresses import split_address
from shoal.node.doctor_findings import Finding, fine, problem, warning
from shoal.node.identity import short


class Port(StrEnum):
    """What binding a port said."""

    OFF = "off"
    FREE = "free"
    TAKEN = "taken"
    NOT_OURS = "not-ours"
    DENIED = "denied"
    UNKNOWN_NAME = "unknown-name"


@dataclass(frozen=True, slots=True)
class PortFacts:
    """check: listen, join, inspect or metrics, as the setting is called; process: who has a taken
    port, as far as this user may know; owner: the node that answers there, b"" for none."""

    check: str
    address: str
    port: Port
    process: str = ""
    owner: bytes = b""


def try_port(check: str, address: str) -> PortFacts:
    """Bind it as the node would, and let it go at once; a name is looked up, which may block."""
    if not address:
        return PortFacts(check, "", Port.OFF)
    host, number = split_address(address)
    try:
        (family, kind, proto, _, place), *_ = socket.getaddrinfo(
            host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError:
        return PortFacts(check, address, Port.UNKNOWN_NAME)
    with socket.socket(family, kind, proto) as probe:
        # What a listener of a moment ago has left behind does not keep a node from starting.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            return PortFacts(check, address, _why(error), _process_at(number))
    return PortFacts(check, address, Port.FREE)


def _why(error: OSError) -> Port:
    known = {
        errno.EADDRINUSE: Port.TAKEN,
        errno.EADDRNOTAVAIL: Port.NOT_OURS,
        errno.EACCES: Port.DENIED,
        errno.EPERM: Port.DENIED,
    }
    return known.get(error.errno or 0, Port.NOT_OURS)


def _process_at(port: int) -> str:
    """ "python3, pid 4711" of who listens at a port, "" where this user may not know."""
    import psutil

    try:
        for each in psutil.net_connections(kind="tcp"):
            here = getattr(each.laddr, "port", None) == port
            if here and each.status == psutil.CONN_LISTEN and each.pid:
                return f"{psutil.Process(each.pid).name()}, pid {each.pid}"
    except (psutil.Error, OSError):
        pass
    return ""


def dialable(address: str) -> str:
    """Where this machine itself reaches a listener."""
    host, port = split_address(address)
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
    return f"{local[host]}:{port}" if host in local else address


def judge_port(facts: PortFacts, me: bytes, *, running: bool | None) -> Finding:
    """Whether this node can listen there, or does."""
    check, address = facts.check, facts.address
    other = f"set another {check} under [node], and open it where there is a firewall"
    judges: dict[Port, Callable[[], Finding]] = {
        Port.OFF: lambda: fine(check, "off"),
        Port.FREE: lambda: _free(check, address, running),
        Port.TAKEN: lambda: _taken(facts, me, other),
        Port.NOT_OURS: lambda: problem(
            check,
            f"{check} is {address}, and this machine has no such address",
            f"set {check} under [node] to an address of this machine, or 0.0.0.0, and what others "
            "dial as advertise",
        ),
        Port.DENIED: lambda: problem(
            check, f"this user may not listen on {address}", "use a port from 1024 up"
        ),
        Port.UNKNOWN_NAME: lambda: problem(
            check, f"{check} is {address}, and that name cannot be looked up", other
        ),
    }
    return judges[facts.port]()


def _free(check: str, address: str, running: bool | None) -> Finding:
    if running:
        return warning(
            check,
            f"this node runs and does not listen on {address}",
            "restart it, if its settings were changed; if it was started with flags, that is why",
        )
    return fine(check, f"{address} is free")


def _taken(facts: PortFacts, me: bytes, other: str) -> Finding:
    if me and facts.owner == me:
        return fine(facts.check, f"{facts.address}, this node")
    who = f"node {short(facts.owner)}" if facts.owner else "another process"
    by = f" ({facts.process})" if facts.process else ""
    return problem(facts.check, f"{facts.address} is taken by {who}{by}", f"stop it, or {other}")
