"""From rows to state: what a replica has to know again before it may speak.

| row | written before | holds |
|---|---|---|
| `view` | anything is sent in or towards the view | view, active, back-off |
| `vote/EPOCH/KIND/VIEW/SEQUENCE` | that vote | digest and signature |
| `op/SEQUENCE/DIGEST` | PRE-PREPARE or PREPARE | the operation |
| `accept/SEQUENCE` | PREPARE | the primary's PRE-PREPARE vote |
| `prepared/SEQUENCE` | COMMIT | the prepared certificate of the highest view |
| `commit/SEQUENCE` | Decided | the commit certificate and the result |
| `view-change/VIEW` | that VIEW-CHANGE | its bytes, to be repeated and never re-made |
| `new-view` | NEW-VIEW, or the first vote in the view | its bytes |
| `stable`, `snapshot` | forgetting what is below | certificate and ledger |
| `epoch/NUMBER` | anything is sent in that epoch | the proof of it |
| `ready` | a vote in an epoch whose first ledger is the last executed | that it has started |

Others' votes are not kept: they are asked for again. Executed state is not kept either: it is
the snapshot and the decisions above it, executed once more.
"""

from collections.abc import Mapping

from shoal.consensus.certificate import parse_certificate, read_certificate
from shoal.consensus.epoch_change import voting_in
from shoal.consensus.epochs import EpochChain, EpochRecord, parse_link
from shoal.consensus.fields import Reader
from shoal.consensus.ledger import Executed, Ledger, Rejected, Result
from shoal.consensus.messages import NewView, decode, parse_view_change
from shoal.consensus.outbox import Outbox
from shoal.consensus.records import operation_digest, parse_operation
from shoal.consensus.state import PREFIX, Config, Core, Decision
from shoal.consensus.validators import Sign, Verifier, Verify
from shoal.consensus.view_change import load_plan
from shoal.consensus.votes import VoteKind, read_vote

MAX_REASON_BYTES = 64


def build_core(
    config: Config, genesis: Ledger, sign: Sign, verify: Verify, rows: Mapping[str, bytes]
) -> Core:
    """A replica's state from its genesis and its rows (none for a first start)."""
    outbox = Outbox()
    own = {key.removeprefix(PREFIX): value for key, value in rows.items() if key.startswith(PREFIX)}
    epochs = known_epochs(rows, genesis.epoch, genesis.interval)
    core = Core(
        config=config,
        sign=sign,
        safety=None,
        epochs=epochs,
        verifier=Verifier(epochs.validators(0), verify),
        ledger=Ledger.restore(genesis.snapshot()),
        outbox=outbox,
    )
    _restore_log(core, own)
    if core.safety is not None:
        core.safety.restore(rows)
    _restore_view(core, own)
    _restore_slots(core, own)
    return core


def known_epochs(rows: Mapping[str, bytes], genesis: EpochRecord, interval: int) -> EpochChain:
    """The epochs that were proved here before; what is in our own rows is not checked again."""
    epochs = EpochChain(genesis, interval)
    for _, value in numbered(rows, f"{PREFIX}epoch"):
        epochs.append(parse_link(value))
    return epochs


def numbered(rows: Mapping[str, bytes], name: str) -> list[tuple[int, bytes]]:
    """The rows `name/NUMBER`, in ascending order of the number."""
    start = f"{name}/"
    return sorted(
        (int(key.removeprefix(start)), value)
        for key, value in rows.items()
        if key.startswith(start)
    )


def _read_result(reader: Reader) -> Result:
    if not reader.flag():
        return Executed()
    return Rejected(reader.blob(MAX_REASON_BYTES).decode())


def _restore_log(core: Core, rows: Mapping[str, bytes]) -> None:
    """The snapshot at the watermark and the decisions above it, executed again."""
    if "stable" in rows:
        core.stability = parse_certificate(rows["stable"])
        core.snapshot = rows["snapshot"]
        core.low = core.stability.sequence
        core.ledger = Ledger.restore(core.snapshot)
    # The epoch that we vote in is that of the watermark: what was executed above it may have
    # ended it already, but the next one starts when a quorum has certified that.
    core.verifier, core.safety = voting_in(core, core.ledger.epoch.number)
    for key, value in sorted(rows.items()):
        if key.startswith("op/"):
            _, kept_for, digest = key.split("/")
            core.body_sequences.setdefault(int(kept_for), set()).add(bytes.fromhex(digest))
            core.bodies[bytes.fromhex(digest)] = value
    for sequence, value in numbered(rows, "commit"):
        reader = Reader(value)
        certificate = read_certificate(reader)
        result = _read_result(reader)
        body = core.body(certificate.digest)
        assert body is not None, "a decision is stored with its operation"
        core.decisions[sequence] = Decision(certificate, body, result)
        if sequence > core.low:
            again = core.ledger.execute(sequence, parse_operation(body), operation_digest(body))
            assert again == result, "execution is deterministic"
            if sequence % core.interval == 0:
                core.keep_snapshot()


def _restore_view(core: Core, rows: Mapping[str, bytes]) -> None:
    """Where we were in the sequence of views, and what we said about leaving them."""
    if "ready" in rows:
        core.ready = parse_certificate(rows["ready"])
    if "view" in rows:
        reader = Reader(rows["view"])
        core.view, core.active, core.backoff = reader.u64(), reader.flag(), reader.u8()
    for view, value in numbered(rows, "view-change"):
        change = parse_view_change(value)
        core.own_view_changes[view] = change
        if view == core.view and not core.active:
            core.view_changes[change.signer] = {view: change}
    if "new-view" in rows:
        message = decode(rows["new-view"])
        assert isinstance(message, NewView)
        if core.active:
            assert message.view == core.view
            load_plan(core, message)
        else:
            core.new_view = message


def _restore_slots(core: Core, rows: Mapping[str, bytes]) -> None:
    """Accepted proposals, prepared certificates and our own votes of the current view."""
    for sequence, value in numbered(rows, "prepared"):
        certificate = parse_certificate(value)
        if sequence <= core.low or certificate.epoch != core.epoch:
            core.persist(f"prepared/{sequence}", None)
        else:
            core.prepared[sequence] = certificate
    core.next_sequence = max(core.plan_end, core.executed, core.low) + 1
    if core.safety is None or not core.active:
        return
    for sequence, value in numbered(rows, "accept"):
        reader = Reader(value)
        vote = read_vote(VoteKind(reader.u8()), reader)
        here = (vote.epoch, vote.view) == (core.epoch, core.view)
        if sequence <= core.low or not here:
            # Its view is over for good. A row that is not taken up would never be forgotten with
            # the log, and the same view of a later epoch is another view.
            core.persist(f"accept/{sequence}", None)
        else:
            core.slot(sequence).proposal = vote
            prepare = core.safety.recall(VoteKind.PREPARE, view=core.view, sequence=sequence)
            if prepare is not None:
                core.slot(sequence).prepares[core.safety.me] = prepare
    for sequence in core.safety.sequences(VoteKind.PRE_PREPARE, view=core.view):
        core.next_sequence = max(core.next_sequence, sequence + 1)
    for sequence in core.safety.sequences(VoteKind.COMMIT, view=core.view):
        if sequence <= core.low:
            continue
        commit = core.safety.recall(VoteKind.COMMIT, view=core.view, sequence=sequence)
        assert commit is not None
        core.slot(sequence).commits[core.safety.me] = {core.view: commit}
