"""Which mesh parameters a quorum may change while the mesh runs, and which hold in each epoch.

An epoch's record carries them as bytes that consensus does not read: nothing at all for those of
the genesis, or all changeable ones in one fixed layout. A quorum can decide on any bytes, so what
cannot be read, or is out of range, changes nothing: a pure function of the record, hence the same
at every node. A checkpoint is computed under the parameters of the epoch whose validators certify
it (docs/adr/0012); `shoal verify` reads them a second time (verify_parameters.py).
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from struct import Struct, error

import structlog

from shoal.consensus.changes import Approve, Change, ChangeKind
from shoal.consensus.epochs import EpochChain
from shoal.consensus.ledger import Ledger
from shoal.consensus.records import parse_operation
from shoal.node.errors import PeerError
from shoal.node.parameters import RANGES, MeshParameters

log = structlog.get_logger()

VERSION = 3
# In this order they stand in an epoch's record, after the version.
CHANGEABLE = (
    "local_steps",
    "rounds_per_checkpoint",
    "budget",
    "beta",
    "start_share",
    "clip_factor",
    "learning_rate",
    "warmup_tokens",
    "schedule_tokens",
    "normalise_steps",
    "trust",
    "evict_harmful",
)
_FORM = Struct(">BIHdddddQQBBB")
SWITCHES = tuple(name for name in CHANGEABLE if isinstance(RANGES[name][0], bool))
# What else a genesis chooses, and why nobody can choose it again.
FIXED = {
    "alpha": "it is the gain of the first epoch alone, and later ones measure theirs",
    "muon_scale": "each member's optimiser has moments of its own kind, which another cannot use",
    "staleness": "what a member remembers of settled deltas is cut to it, so a delta that was "
    "counted or given up could count again",
}


def encode(mesh: MeshParameters) -> bytes:
    """The changeable ones as an epoch's record carries them; they must be in range."""
    assert not mesh.problems(), "only what may come into force is written"
    return _FORM.pack(VERSION, *(getattr(mesh, name) for name in CHANGEABLE))


def decode(data: bytes, genesis: MeshParameters) -> MeshParameters:
    """What these bytes put in force; raises PeerError("bad-parameters") where that is nothing."""
    if not data:
        return genesis
    try:
        version, *values = _FORM.unpack(data)
    except error as problem:
        raise PeerError("bad-parameters", str(problem)) from None
    if version != VERSION:
        raise PeerError("bad-parameters", f"version {version}, this Shoal reads {VERSION}")
    given = dict(zip(CHANGEABLE, values, strict=True))
    given |= {name: bool(given[name]) for name in SWITCHES if given[name] in (0, 1)}
    mesh = replace(genesis, **given)
    if problems := mesh.problems():
        raise PeerError("bad-parameters", "; ".join(problems))
    return mesh


def follow(genesis: MeshParameters, records: Iterable[bytes]) -> MeshParameters:
    """Those in force in the last of these epochs, whose records from epoch 1 on carry `records`."""
    mesh = genesis
    for number, data in enumerate(records, 1):
        mesh = _after(mesh, data, genesis, number)
    return mesh


def _after(
    before: MeshParameters, data: bytes, genesis: MeshParameters, number: int
) -> MeshParameters:
    try:
        mesh = decode(data, genesis)
    except PeerError as problem:
        log.warning("parameters.ignored", epoch=number, why=str(problem))
        return before
    if mesh != before:
        log.info("parameters.changed", epoch=number, **differences(before, mesh))
    return mesh


def differences(before: MeshParameters, after: MeshParameters) -> dict[str, str]:
    """What changes, by name: "2.0 -> 3.0"."""
    old, new = asdict(before), asdict(after)
    return {name: f"{old[name]} -> {new[name]}" for name in old if old[name] != new[name]}


class ParametersInForce:
    """The mesh parameters of each epoch, and of the one that this node votes or follows in."""

    def __init__(
        self,
        genesis: MeshParameters,
        *,
        epochs: Callable[[], EpochChain],
        epoch: Callable[[], int],
    ) -> None:
        self._genesis = genesis
        self._epochs = epochs
        self._epoch = epoch
        # Asked on the model's thread too: what is added twice is the same twice.
        self._known = {0: genesis}

    def now(self) -> MeshParameters:
        """Those of the present epoch."""
        last = self._epoch()
        for number in range(len(self._known), last + 1):
            data = self._epochs().record(number).parameters
            self._known[number] = _after(self._known[number - 1], data, self._genesis, number)
        return self._known[last]

    def decided(self, ledger: Ledger) -> MeshParameters | None:
        """What a quorum has decided for the next epoch; None where it decided nothing."""
        if ledger.next_parameters is None:
            return None
        try:
            return decode(ledger.next_parameters, self._genesis)
        except PeerError:
            return None

    def refusal(self, signed: bytes, ledger: Ledger) -> str:
        """Why this node passes no such approval on; "" for one that is fine, and for all else."""
        operation = parse_operation(signed)
        if not isinstance(operation, Approve) or operation.change.kind is not ChangeKind.PARAMETERS:
            return ""
        if ledger.next_parameters is not None:
            return "parameters-decided"
        try:
            decode(operation.change.parameters, self._genesis)
        except PeerError as problem:
            return problem.reason
        return ""


def change_to(mesh: MeshParameters) -> Change:
    """The change that puts exactly these in force."""
    return Change(ChangeKind.PARAMETERS, parameters=encode(mesh))
