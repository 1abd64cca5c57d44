"""Finding out who answers at an address without knowing who should: only ever a first look.

What is found proves that whoever answers holds that key, and nothing about who should be there.
"""

import socket
import ssl

from shoal.node.addresses import split_address
from shoal.node.certificates import read_leaf
from shoal.node.errors import PeerError, UnreachableError


def who_answers(address: str, timeout_s: float) -> bytes:
    """The id whose leaf is shown at a join port; raises UnreachableError.

    Blocks for up to `timeout_s`, so it is for a thread. Nothing is sent but the handshake.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(split_address(address), timeout=timeout_s) as connection,
            context.wrap_socket(connection) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
    except OSError as error:
        # An SSLError is one as well: then something answers, but no node.
        kind = "it is no join port" if isinstance(error, ssl.SSLError) else str(error)
        raise UnreachableError(
            f"no node answers at {address} ({kind}); check the address and that the node is running"
        ) from None
    try:
        return read_leaf(ssl.DER_cert_to_PEM_cert(shown or b"").encode()).node_id
    except PeerError as error:
        raise UnreachableError(f"what answers at {address} is not a node: {error}") from None
