"""What a protobuf message may look like, judged on its bytes before protobuf makes objects of it.

Four mebibytes of empty submessages are two million objects, seconds of work and hundreds of
mebibytes, and all of it happens before any check of the parsed message can run. So the bytes are
walked first: a field that the schema does not have, one that stands twice where once is allowed,
more items than the limit, or a length beyond the end stops the walk where it stands. The walk costs
a step per field, and it never sees more fields than the limits allow.

The shape of a message is taken from its descriptor, so it cannot fall behind the schema; what a
descriptor does not say, how often a repeated field may stand, is given beside it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from shoal.node.errors import PeerError

M = TypeVar("M", bound=Message)

_VARINT, _FIXED64, _LENGTH = 0, 1, 2
_WIRE_TYPES = {
    FieldDescriptor.TYPE_DOUBLE: _FIXED64,
    FieldDescriptor.TYPE_FIXED64: _FIXED64,
    FieldDescriptor.TYPE_UINT32: _VARINT,
    FieldDescriptor.TYPE_UINT64: _VARINT,
    FieldDescriptor.TYPE_BOOL: _VARINT,
    FieldDescriptor.TYPE_STRING: _LENGTH,
    FieldDescriptor.TYPE_BYTES: _LENGTH,
    FieldDescriptor.TYPE_MESSAGE: _LENGTH,
}
# A varint of 64 bits has at most ten bytes; the encodings here never need a longer one.
_VARINT_BYTES_MAX = 10


@dataclass(frozen=True, slots=True)
class _Rule:
    """slot: what is counted together, the fields of one oneof; limit: how many of it there may be;
    inside: the shape of a submessage."""

    slot: int
    limit: int
    wire_type: int
    inside: "_Shape | None"


@dataclass(frozen=True, slots=True)
class _Shape:
    """A message type and what may follow each tag. No message of the schema contains its own kind,
    so how deep it goes is bounded by the schema.

    unknown_max: so many fields that the schema does not have may stand in it.
    """

    name: str
    unknown_max: int
    rules: dict[int, _Rule] = field(default_factory=dict)


def _shape_of(descriptor: Descriptor, counts: Mapping[str, int], unknown_max: int) -> _Shape:
    shape = _Shape(descriptor.name, unknown_max)
    for one in descriptor.fields:
        wire_type = _WIRE_TYPES[one.type]
        limit = counts[f"{descriptor.name}.{one.name}"] if one.is_repeated else 1
        oneof = one.containing_oneof
        slot = one.number if oneof is None else oneof.fields[0].number
        inside = None
        if one.message_type is not None:
            inside = _shape_of(one.message_type, counts, unknown_max)
        shape.rules[one.number << 3 | wire_type] = _Rule(slot, limit, wire_type, inside)
    return shape


class Screen(Generic[M]):
    """Reads one type of message from bytes of a peer."""

    def __init__(
        self,
        kind: type[M],
        parse: Callable[[bytes], M],
        *,
        bytes_max: int,
        counts: Mapping[str, int] | None = None,
        unknown_max: int = 0,
    ) -> None:
        """counts: how often each repeated field may stand in its message, as "Message.field".

        unknown_max: more than 0 only where a newer node may answer an older command. A repeated
        field that is not named is a mistake of ours: KeyError.
        """
        self.bytes_max = bytes_max
        self._parse = parse
        descriptor: Any = kind.DESCRIPTOR
        self._shape = _shape_of(descriptor, counts or {}, unknown_max)

    def read(self, data: bytes) -> M:
        """The message that these bytes are; raises PeerError."""
        if len(data) > self.bytes_max:
            raise PeerError("oversized", f"{len(data)} bytes of {self._shape.name}")
        _walk(data, 0, len(data), self._shape)
        try:
            return self._parse(data)
        except DecodeError:
            raise PeerError("malformed-message", f"it is no {self._shape.name}") from None

    def receive(self, data: bytes) -> M | PeerError:
        """The same as a value, for a transport that would log or swallow what its deserialiser
        raises; `sound` is the other half."""
        try:
            return self.read(data)
        except PeerError as error:
            return error


def sound(received: M | PeerError) -> M:
    """What a transport handed on; raises the PeerError that `receive` met."""
    if isinstance(received, PeerError):
        raise received
    return received


def _walk(data: bytes, at: int, end: int, shape: _Shape) -> None:
    rules = shape.rules
    seen: dict[int, int] = {}
    while at < end:
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(data, at - 1, end)
        rule = rules.get(tag)
        if rule is None:
            if tag & 7 not in (_VARINT, _FIXED64, _LENGTH) or not shape.unknown_max:
                raise PeerError("unknown-field", f"field {tag >> 3} of {shape.name}")
            rule = _Rule(0, shape.unknown_max, tag & 7, None)
        count = seen[rule.slot] = seen.get(rule.slot, 0) + 1
        if count > rule.limit:
            raise PeerError("too-many-fields", f"field {tag >> 3} of {shape.name}")
        if rule.wire_type == _LENGTH:
            if at < end and data[at] < 0x80:
                size, at = data[at], at + 1
            else:
                size, at = _varint(data, at, end)
            stop = at + size
            if stop > end:
                raise PeerError("malformed-message", f"a field of {shape.name} ends too late")
            if rule.inside is not None:
                _walk(data, at, stop, rule.inside)
            at = stop
        elif rule.wire_type == _VARINT:
            _, at = _varint(data, at, end)
        else:
            at += 8
    if at > end:
        raise PeerError("malformed-message", f"{shape.name} ends too early")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """An unsigned integer of seven bits a byte, and where it ends."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift == 7 * _VARINT_BYTES_MAX:
            break
    raise PeerError("malformed-message", "a number without an end")
