"""Failure detection on the wire: protobuf on one side, checked messages of gossip/ on the other.

What is bounded here: lengths, numbers, and how many records come in one message. Signatures are
checked by the detector, which knows which of them matter.
"""

from shoal.gossip.liveness import (
    COUNTER_MAX,
    ID_BYTES,
    RUMOURS_MAX,
    SIGNATURE_BYTES,
    Alive,
    Kind,
    Message,
    Rumour,
    Suspicion,
)
from shoal.node.errors import PeerError
from shoal.proto import mesh_pb2

_KINDS = {int(kind): kind for kind in Kind}


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise PeerError("malformed-message", what)


def _alive(word: mesh_pb2.AliveWord) -> Alive:
    _require(len(word.member) == ID_BYTES, "a member id is not 32 bytes")
    _require(1 <= word.incarnation <= COUNTER_MAX, "an incarnation is out of range")
    _require(len(word.signature) == SIGNATURE_BYTES, "a signature is not 64 bytes")
    return Alive(word.member, word.incarnation, word.signature)


def _suspicion(word: mesh_pb2.SuspicionWord) -> Suspicion:
    for member in (word.accuser, word.subject):
        _require(len(member) == ID_BYTES, "a member id is not 32 bytes")
    _require(word.incarnation <= COUNTER_MAX, "an incarnation is out of range")
    signed = SIGNATURE_BYTES if word.incarnation else 0
    _require(len(word.word) == signed, "a word of the wrong length")
    _require(len(word.signature) == SIGNATURE_BYTES, "a signature is not 64 bytes")
    return Suspicion(word.accuser, word.subject, word.incarnation, word.word, word.signature)


def parse_liveness(frame: mesh_pb2.Liveness) -> Message:
    """Check a message of failure detection; raises PeerError."""
    _require(frame.kind in _KINDS, "an unknown kind of probe")
    _require(frame.nonce <= COUNTER_MAX, "a nonce is out of range")
    _require(len(frame.member) in (0, ID_BYTES), "a member id is not 32 bytes")
    _require(len(frame.signature) in (0, SIGNATURE_BYTES), "a signature is not 64 bytes")
    told = len(frame.alive) + len(frame.suspicions)
    _require(told <= RUMOURS_MAX, "too many rumours in a message")
    rumours: list[Rumour] = [_alive(word) for word in frame.alive]
    rumours += [_suspicion(word) for word in frame.suspicions]
    return Message(_KINDS[frame.kind], frame.nonce, frame.member, frame.signature, tuple(rumours))


def make_liveness(message: Message) -> mesh_pb2.Liveness:
    """The protobuf message; own words go before accusations."""
    kind, nonce, member, signature, rumours = message
    return mesh_pb2.Liveness(
        kind=int(kind),
        nonce=nonce,
        member=member,
        signature=signature,
        alive=[mesh_pb2.AliveWord(**each._asdict()) for each in rumours if isinstance(each, Alive)],
        suspicions=[
            mesh_pb2.SuspicionWord(**each._asdict())
            for each in rumours
            if isinstance(each, Suspicion)
        ],
    )
