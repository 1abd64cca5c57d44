"""When a checkpoint is due: a look at what is pending, a few times a second.

Being due is each node's own opinion, and only starts the search for a cut that a quorum can check
(consensus/attest.py); so it may depend on this node's clock.
"""

import asyncio
from collections.abc import Callable

from shoal.node.chronicle import Chronicle
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
    chronicle: Chronicle,
) -> None:
    """Tell the attestor when it is time for a checkpoint, for ever."""
    loop = asyncio.get_running_loop()
    pending, since = 0, loop.time()
    members, until_height = set(model.parameters.members), 0
    while True:
        await asyncio.sleep(LOOK_S)
        replica, now = consensus.replica, loop.time()
        if set(replica.ledger.members) != members:
            # Who trains from now on is part of a checkpoint; one that was under way when the
            # members changed may not say so yet.
            members, until_height = set(replica.ledger.members), model.height + 1
        count = len(model.book.pending())
        if count != pending:
            pending, since = count, now
        rounds = rounds_per_checkpoint()
        coming = model.height + 1
        pending_of = {each: model.book.pending_of(each) for each in replica.validators.keys}
        quorum = replica.validators.quorum
        chronicle.watch(now, coming, pending_of, quorum=quorum, rounds_wanted=rounds)
        quiet_s = max(QUIET_S, 4 * round_seconds())
        why = ""
        if model.book.due(pending_of, quorum=quorum, rounds_per_checkpoint=rounds):
            ready = sum(have >= rounds for have in pending_of.values())
            why = f"{ready} of {len(pending_of)} validators had {rounds} deltas or more here"
        elif pending > 0 and now - since > quiet_s:
            why = f"nothing new had come for {quiet_s:.0f} s"
        elif members != set(model.parameters.members) and model.height <= until_height:
            why = "the members had changed"
        if why and model.height == replica.ledger.height:
            chronicle.due(now, coming, why)
            consensus.cut_due(coming)
