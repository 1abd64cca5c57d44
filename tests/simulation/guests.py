"""Who is invited by whom in a simulated mesh, and who tries to get in although it is not.

Hosts are founders that run no node and never leave, so what they sign is always good: clients that
must get in are invited by them. Strays try everything else, and what comes of that is for the log:
some of them may get in, if whoever invited them is a member at that moment.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shoal.consensus.invitations import Invitation, InvitedRole
from shoal.consensus.records import Join
from shoal.consensus.validators import Sign
from tests.simulation.keys import Keyring

# Enough that the shares of the queue that belong to each of them hold the newcomers of any plan, of
# whom a regression has forty.
HOSTS = 8
STRAY = 2_000
# About when nodes join again (changes.py), so that some of these are void then and some are not.
ISSUED_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Inviter:
    """A key that signs invitations."""

    public: bytes
    sign: Sign

    def invite(
        self,
        mesh_id: bytes,
        number: int,
        *,
        uses: int = 1,
        role: InvitedRole = InvitedRole.VALIDATOR,
    ) -> Invitation:
        """Its word that so many may come in."""
        unsigned = Invitation(
            mesh_id=mesh_id,
            inviter=self.public,
            number=number,
            uses=uses,
            role=role,
            epoch=0,
            epoch_digest=bytes(32),
            expires_ms=2**63,
            hint="",
        )
        return replace(unsigned, signature=self.sign(unsigned.signed_bytes()))


def make_hosts(keyring: Keyring) -> tuple[Inviter, ...]:
    return tuple(Inviter(*keyring.identity(f"host{i}")) for i in range(HOSTS))


def make_join(keyring: Keyring, mesh_id: bytes, number: int, invitation: Invitation | None) -> Join:
    """A signed Join of a member of its own for each number."""
    public, sign = keyring.identity(f"joiner{number}")
    unsigned = Join(
        member=public,
        address=f"host{number}:7400",
        shard_tokens=10 + number,
        share_permille=500,
        time_ms=1 + number,
        invitation=invitation,
    )
    return replace(unsigned, signature=sign(unsigned.signed_bytes(mesh_id)))


def make_guest(keyring: Keyring, mesh_id: bytes, number: int) -> Join:
    """A Join that is good whenever it comes: the host's, one number for each newcomer."""
    host = make_hosts(keyring)[number % HOSTS]
    return make_join(keyring, mesh_id, number, host.invite(mesh_id, 1 + number))


def make_strays(
    keyring: Keyring, mesh_id: bytes, nodes: Sequence[Inviter], rng: random.Random
) -> tuple[Join, ...]:
    """One of each kind of Join that may or must not be executed, in a random order."""
    hosts = make_hosts(keyring)
    node = rng.choice(nodes)
    once, twice = hosts[0].invite(mesh_id, 500), hosts[1].invite(mesh_id, 500, uses=2)
    foreign = Inviter(*keyring.identity("nobody"))
    elsewhere = hosts[2].invite(bytes(32), 501)
    spoiled = replace(hosts[2].invite(mesh_id, 502), uses=9)
    invitations = [
        None,
        # Two race for one use, three for two.
        *[once] * 2,
        *[twice] * 3,
        hosts[3].invite(mesh_id, 0),
        foreign.invite(mesh_id, 1),
        hosts[3].invite(mesh_id, 503, role=InvitedRole.MEMBER),
        # Inviters that may leave, and come back after this or before it.
        *[node.invite(mesh_id, ISSUED_MS + rng.randint(0, 20_000), uses=3)] * 2,
        node.invite(mesh_id, 1),
        elsewhere,
        spoiled,
    ]
    joins = [make_join(keyring, mesh_id, STRAY + i, each) for i, each in enumerate(invitations)]
    return tuple(rng.sample(joins, len(joins)))
