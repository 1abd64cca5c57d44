"""A look at who answers at an address: one TLS handshake, and nothing is said after it.

The handshake proves that whoever answers holds the key of the leaf that it shows, and the leaf
carries the signature of its identity. No certificate is shown in return and none of the other
side's dates is relied on, so a look also tells what is wrong where two clocks do not agree.
"""

import asyncio
import socket
import ssl
from enum import StrEnum

from shoal.node.addresses import split_address
from shoal.node.certificates import Presented, read_leaf
from shoal.node.errors import PeerError


class Sight(StrEnum):
    """What a look saw; these words travel (proto/look.proto), so none is ever changed."""

    ANSWERS = "answers"
    REFUSED = "refused"
    SILENT = "silent"
    UNREACHABLE = "unreachable"
    UNKNOWN_NAME = "unknown-name"
    NO_TLS = "no-tls"
    SOMEBODY_ELSE = "somebody-else"
    OUT_OF_DATE = "out-of-date"
    # Nobody looked: no such member in the ledger, or it asks too often.
    NOT_LISTED = "not-listed"
    NOT_NOW = "not-now"


class NothingSeen(Exception):
    """Nobody answers there who could be a node; `sight` says how that looked."""

    def __init__(self, sight: Sight) -> None:
        super().__init__(sight)
        self.sight = sight


def unpinned_context() -> ssl.SSLContext:
    """For a handshake with whoever answers, about whom nothing is required but the leaf."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context


def read_shown(shown: bytes | None) -> Presented:
    """Whose leaf was shown in a handshake, as ssl gives it; raises PeerError("bad-certificate")."""
    return read_leaf(ssl.DER_cert_to_PEM_cert(shown or b"").encode())


async def who_is_at(address: str, timeout_s: float) -> Presented:
    """The leaf of whoever answers at host:port; raises NothingSeen, also when time is up."""
    context = unpinned_context()
    try:
        host, port = split_address(address)
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="")
    except TimeoutError:
        raise NothingSeen(Sight.SILENT) from None
    except (ValueError, socket.gaierror):
        raise NothingSeen(Sight.UNKNOWN_NAME) from None
    except (ssl.SSLError, ConnectionResetError, ConnectionAbortedError):
        # Something is there, and it does not go on after our first bytes.
        raise NothingSeen(Sight.NO_TLS) from None
    except ConnectionRefusedError:
        raise NothingSeen(Sight.REFUSED) from None
    except OSError:
        raise NothingSeen(Sight.UNREACHABLE) from None
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return read_shown(shown)
    except PeerError:
        raise NothingSeen(Sight.SOMEBODY_ELSE) from None
    finally:
        writer.transport.abort()


async def sight_of(address: str, expected: bytes, now: float, timeout_s: float) -> Sight:
    """Whether the node `expected` answers at an address with a leaf that counts at `now`."""
    try:
        presented = await who_is_at(address, timeout_s)
    except NothingSeen as nothing:
        return nothing.sight
    if presented.node_id != expected:
        return Sight.SOMEBODY_ELSE
    if not presented.not_before <= now <= presented.not_after:
        return Sight.OUT_OF_DATE
    return Sight.ANSWERS
