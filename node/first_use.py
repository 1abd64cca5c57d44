"""Finding out who answers at an address without knowing who should: only ever a first look.

What is found proves that whoever answers holds that key, and nothing about who should be there.
"""

import socket
import ssl

from shoal.node.addresses import split_address
from shoal.node.errors import PeerError, UnreachableError
from shoal.node.look import read_shown, unpinned_context


def who_answers(address: str, timeout_s: float) -> bytes:
    """The id whose leaf is shown at a join port; raises UnreachableError.

    Blocks for up to `timeout_s`, so it is for a thread. Nothing is sent but the handshake.
    """
    try:
        with (
            socket.create_connection(split_address(address), timeout=timeout_s) as connection,
            unpinned_context().wrap_socket(connection) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
    except OSError as error:
        # An SSLError is one as well: then something answers, but no node.
        kind = "it is no join port" if isinstance(error, ssl.SSLError) else str(error)
        raise UnreachableError(
            f"no node answers at {address} ({kind}); check the address and that the node is running"
        ) from None
    try:
        return read_shown(shown).node_id
    except PeerError as error:
        raise UnreachableError(f"what answers at {address} is not a node: {error}") from None
