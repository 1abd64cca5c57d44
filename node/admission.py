"""What somebody whom nobody knows may ask of the listener, by where the call comes from. Pure.

Before a handshake there is no name to hold anything against, only an address. So each address may
begin so many calls a second, after which it waits a little and is then refused, and hold so many
open at once; and all unfinished handshakes together have a bound, so that whoever has many
addresses cannot hold more than that.
"""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

from shoal.node.errors import PeerError
from shoal.node.rate import TokenBucket


@dataclass(frozen=True, slots=True)
class CallLimit:
    """Of one address: calls per second, at once after a pause, open at a time; and of all."""

    per_s: float
    burst: float
    open_max: int
    open_of_all_max: int


LIMITS = {
    "handshake": CallLimit(per_s=10, burst=40, open_max=16, open_of_all_max=64),
    "fetch": CallLimit(per_s=200, burst=400, open_max=64, open_of_all_max=256),
    "join": CallLimit(per_s=2, burst=20, open_max=4, open_of_all_max=16),
}
WAIT_MAX_S = 1.0
HOSTS_MAX = 4096


@dataclass(slots=True)
class _Host:
    buckets: dict[str, TokenBucket] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)


class Admission:
    """Counts the calls of every address; `now` in seconds never decreases."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self._open = dict.fromkeys(LIMITS, 0)

    @contextmanager
    def call(self, kind: str, peer: str, now: float) -> Iterator[float]:
        """Hold one call open; gives how many seconds to wait before it is worked on.

        peer: as gRPC writes it, "ipv4:192.0.2.1:4711". Raises PeerError("busy").
        """
        limit, host = LIMITS[kind], self._host(host_of(peer))
        bucket = host.buckets.get(kind)
        if bucket is None:
            bucket = host.buckets[kind] = TokenBucket(limit.per_s, burst=limit.burst)
        if self._open[kind] >= limit.open_of_all_max:
            raise PeerError("busy", f"{self._open[kind]} calls of this kind are open")
        if host.open.get(kind, 0) >= limit.open_max:
            raise PeerError("busy", f"{limit.open_max} calls from there are open")
        if bucket.wait(now) > WAIT_MAX_S:
            raise PeerError("busy", f"more than {limit.per_s:.0f} calls a second from there")
        wait_s = bucket.take(1, now)
        host.open[kind] = host.open.get(kind, 0) + 1
        self._open[kind] += 1
        try:
            yield wait_s
        finally:
            host.open[kind] -= 1
            self._open[kind] -= 1

    def _host(self, name: str) -> _Host:
        host = self._hosts.pop(name, None) or _Host()
        # The one that called longest ago is forgotten first.
        self._hosts[name] = host
        if len(self._hosts) > HOSTS_MAX:
            del self._hosts[next(iter(self._hosts))]
        return host


def host_of(peer: str) -> str:
    """Who is counted together: a host, half an IPv6 address; on this machine, one connection.

    Several nodes share the loopback address, and whoever can open connections there has other
    means.
    """
    family, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer
    if family not in ("ipv4", "ipv6") or address.is_loopback:
        return peer
    return host if address.version == 4 else str(ipaddress.ip_network((int(address), 64), False))
