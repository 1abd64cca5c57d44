"""Which process of a key is the current one: the later boot, and two of one boot are a crime."""

import secrets
from collections.abc import Callable

import structlog

from shoal.node.errors import PeerError
from shoal.node.identity import Identity, short
from shoal.node.statements import NONCE_BYTES, Boot, eviction, parse_boot

log = structlog.get_logger()

# Where a refusal carries the boot that is the reason for it.
PROOF_METADATA = "shoal-boot-bin"


class Boots:
    """This process's signed boot, and the newest that each peer has shown."""

    def __init__(
        self,
        identity: Identity,
        mesh_id: bytes,
        count: int,
        on_evidence: Callable[[bytes], None],
    ) -> None:
        """`count` says how often the key has started; `on_evidence` takes what evicts."""
        self._mesh_id = mesh_id
        self._on_evidence = on_evidence
        mine = Boot(identity.node_id, count, secrets.token_bytes(NONCE_BYTES))
        self.own = mine.statement(identity.sign(mine.signed_bytes(mesh_id)))
        self._mine = mine
        self._known: dict[bytes, tuple[Boot, bytes]] = {}
        # What another process with this node's own key has signed.
        self.rival: Boot | None = None

    def shown(self, statement: bytes) -> None:
        """A peer that refused this process showed why: believed if this very key signed it."""
        boot = parse_boot(statement, self._mesh_id)
        mine = self._mine
        if boot is None or boot.node_id != mine.node_id or boot.nonce == mine.nonce:
            return
        # Earlier boots are this node's past, and anybody may still have them.
        if boot.count >= mine.count:
            self.rival = boot

    def check(self, peer: bytes, statement: bytes) -> None:
        """Raise PeerError for a process that another one with the same key has replaced.

        A later boot replaces an earlier one. Two nonces for one boot are two processes that run
        with one key: both statements are signed, so they are evidence.
        """
        boot = parse_boot(statement, self._mesh_id)
        if boot is None or boot.node_id != peer:
            raise PeerError("bad-signature", "the boot of a link")
        known = self._known.get(peer)
        if known is not None and boot.count < known[0].count:
            why = f"{short(peer)} has started again since"
            raise PeerError("stale-boot", why, proof=known[1])
        if known is not None and boot.count == known[0].count and boot.nonce != known[0].nonce:
            log.warning("evidence", kind="two-processes", signer=short(peer))
            self._on_evidence(eviction(peer, known[1], statement))
            why = f"two processes use the key of {short(peer)}"
            raise PeerError("two-processes", why, proof=known[1])
        self._known[peer] = (boot, statement)
