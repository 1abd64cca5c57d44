"""When a checkpoint is due: a look at what is pending, a few times a second.

Being due is each node's own opinion, and only starts the search for a cut that a quorum can check
(consensus/attest.py); so it may depend on this node's clock.
"""

import asyncio
from collections.abc import Callable

from shoal.node.consensus_driver import ConsensusDriver
from shoal.node.shared_model import SharedModel

LOOK_S = 0.2
# When nothing new has come for so long, what is pending is worth a cut of its own.
QUIET_S = 4.0


async def watch_for_cuts(
    *,
    model: SharedModel,
    consensus: ConsensusDriver,
    rounds_per_checkpoint: Callable[[], int],
    round_seconds: Callable[[], float],
) -> None:
    """Tell the attestor when it is time for a checkpoint, for ever."""
    loop = asyncio.get_running_loop()
    pending, since = 0, loop.time()
    members, until_height = set(model.parameters.members), 0
    while True:
        await asyncio.sleep(LOOK_S)
        replica = consensus.replica
        if set(replica.ledger.members) != members:
            # Who trains from now on is part of a checkpoint; one that was under way when the
            # members changed may not say so yet.
            members, until_height = set(replica.ledger.members), model.height + 1
        count = len(model.book.pending())
        if count != pending:
            pending, since = count, loop.time()
        quiet_s = max(QUIET_S, 4 * round_seconds())
        due = (
            model.book.due(
                replica.validators.keys,
                quorum=replica.validators.quorum,
                rounds_per_checkpoint=rounds_per_checkpoint(),
            )
            or (pending > 0 and loop.time() - since > quiet_s)
            or (members != set(model.parameters.members) and model.height <= until_height)
        )
        if due and model.height == replica.ledger.height:
            consensus.cut_due(model.height + 1)
