"""Builds the cluster of a plan: identities, validators, genesis, what each node is configured to.

The only place in the simulator that knows how these things are constructed.
"""

import hashlib
import random
from dataclasses import dataclass

from shoal.consensus.attest import AttestorConfig
from shoal.consensus.ledger import Ledger
from shoal.consensus.members import Member
from shoal.consensus.records import Join, operation_bytes
from shoal.consensus.state import WINDOW_INTERVALS, Config
from shoal.consensus.validators import Sign, Validators, Verify
from tests.simulation.guests import Inviter, make_guest, make_hosts, make_strays
from tests.simulation.keys import Keyring
from tests.simulation.plan import TIMEOUT_MS, Plan

DECOYS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What makes a node this node."""

    public: bytes
    sign: Sign
    config: Config
    attestor_config: AttestorConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Everything that is fixed before the first event."""

    mesh_id: bytes
    # Those of epoch 0; of the identities these are the first ones, in the same order.
    validators: Validators
    genesis: Ledger
    identities: tuple[Identity, ...]
    verify: Verify
    # Who is faulty: liars by behaviour come first in the draw, then the rotten disks.
    liars: tuple[int, ...]
    rotten: frozenset[int]
    operations: tuple[Join, ...]
    burst: tuple[Join, ...]
    # Members that run no node and never leave: what they sign is always good.
    hosts: tuple[Inviter, ...]
    # Joins that may come in, and more that must not.
    strays: tuple[Join, ...]
    # Well-formed operations that nobody asked for, for liars to propose.
    decoys: tuple[bytes, ...]

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Every node's, those of the spare members last."""
        return tuple(identity.public for identity in self.identities)

    @property
    def window(self) -> int:
        return WINDOW_INTERVALS * self.validators.interval


def build_cluster(plan: Plan, rng: random.Random) -> Cluster:
    """The cluster of this plan; equal plans give equal clusters."""
    keyring = Keyring(f"{plan.mode}/{plan.seed}", real=plan.real_signatures)
    everybody = [keyring.identity(f"node{i}") for i in range(plan.validators + plan.spares)]
    pairs = sorted(everybody[: plan.validators], key=lambda pair: pair[0])
    pairs += everybody[plan.validators :]
    mesh_id = hashlib.sha256(f"mesh/{plan.seed}".encode()).digest()
    keys = tuple(public for public, _ in pairs[: plan.validators])
    validators = Validators(mesh_id, 0, keys, plan.stability_interval)
    member = Member("genesis:1", 1000, 500)
    hosts = make_hosts(keyring)
    founders = [public for public, _ in pairs] + [host.public for host in hosts]
    genesis = Ledger.genesis(
        mesh_id, [(public, member) for public in founders], keys, plan.stability_interval
    )
    faulty = rng.sample(range(plan.validators), len(plan.byzantine) + plan.rotten)
    strays = make_strays(keyring, mesh_id, [Inviter(*pair) for pair in pairs], rng)
    decoys = [make_guest(keyring, mesh_id, 1000 + i) for i in range(DECOYS)]
    return Cluster(
        mesh_id=mesh_id,
        validators=validators,
        genesis=genesis,
        identities=tuple(_identity(plan, validators, public, sign) for public, sign in pairs),
        verify=keyring.verify,
        liars=tuple(faulty[: len(plan.byzantine)]),
        rotten=frozenset(faulty[len(plan.byzantine) :]),
        operations=tuple(make_guest(keyring, mesh_id, i) for i in range(plan.operations)),
        burst=tuple(make_guest(keyring, mesh_id, 100 + i) for i in range(plan.burst)),
        hosts=hosts,
        strays=strays,
        decoys=tuple(operation_bytes(join) for join in (*decoys, *strays)),
    )


def _identity(plan: Plan, validators: Validators, public: bytes, sign: Sign) -> Identity:
    return Identity(
        public=public,
        sign=sign,
        config=Config(me=public, timeout_ms=TIMEOUT_MS, retained=plan.retained),
        attestor_config=AttestorConfig(
            validators=validators, me=public, attempt_ms=30_000 if plan.mode == "slow" else 4_000
        ),
    )
