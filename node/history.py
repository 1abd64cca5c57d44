"""Whether the mesh that answers is the one that an invitation is from.

The genesis alone does not say so: keys of validators that left long ago may be stolen later, and
sign another history from the same genesis on. The invitation names an epoch that its inviter was in
and that epoch's digest, so a newcomer knows one point of the right chain that is as new as the
invitation (weak subjectivity; consensus.md 3.5, docs/adr/0016).
"""

import asyncio
from collections.abc import Sequence

import structlog

from shoal.consensus.epochs import EpochChain, build_chain, split_links
from shoal.consensus.errors import ConsensusError
from shoal.consensus.invitations import Invitation
from shoal.consensus.validators import STABILITY_INTERVAL
from shoal.node import bulk
from shoal.node.channels import open_channel
from shoal.node.door import is_of_another_history
from shoal.node.errors import NotAdmittedError, PeerError
from shoal.node.genesis import Genesis
from shoal.node.identity import verify
from shoal.node.strict import strict_stub

log = structlog.get_logger()


def require_same_history(chain: EpochChain, invitation: Invitation) -> None:
    """Raise NotAdmittedError where this chain has another epoch of the invitation's number."""
    if is_of_another_history(invitation, chain):
        raise NotAdmittedError(
            f"another history of this mesh: its epoch {invitation.epoch} is "
            f"{chain.record(invitation.epoch).digest.hex()[:16]}, and the invitation is from "
            f"{invitation.epoch_digest.hex()[:16]}; ask whoever invited you which one is right, "
            "and do not join before you know"
        )


async def is_history_known(
    contacts: Sequence[tuple[bytes, str]], genesis: Genesis, invitation: Invitation
) -> bool:
    """Ask these join ports for the chain of epochs until one goes as far as the invitation.

    False: none does so yet. Raises NotAdmittedError where it is another history.
    """
    for peer, address in contacts:
        try:
            async with open_channel(address, peer, None) as channel:
                data = await bulk.fetch_epochs(strict_stub(channel), genesis.mesh_id)
            # A chain of thousands of epochs is seconds of checking signatures.
            chain = await asyncio.to_thread(_checked, data, genesis)
        except (bulk.FetchFailed, PeerError, ConsensusError) as error:
            log.info("join.epochs-unknown", address=address, why=str(error))
            continue
        require_same_history(chain, invitation)
        if chain.last >= invitation.epoch:
            return True
    return False


def _checked(data: bytes, genesis: Genesis) -> EpochChain:
    return build_chain(split_links(data), genesis.first_epoch(), STABILITY_INTERVAL, verify)
