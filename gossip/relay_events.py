"""What a relay is told and what it asks for: the vocabulary of relay.py.

Events come from links, from the store and from the clock; effects are carried out in order by the
driver, which alone touches the network.
"""

from dataclasses import dataclass
from typing import TypeAlias

from shoal.gossip.book import Summary
from shoal.gossip.delta import DeltaHeader, DeltaKey, DeltaReference


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link to a peer is ready for use."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link is gone, and with it whatever was asked of the peer."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Announced:
    """A peer says that it holds these."""

    peer: bytes
    items: tuple[DeltaReference, ...]


@dataclass(frozen=True, slots=True)
class SummaryReceived:
    """A peer says what it holds (DeltaBook.summary)."""

    peer: bytes
    summary: Summary


@dataclass(frozen=True, slots=True)
class Held:
    """A delta is stored here now, be it an own one, fetched, or fetched for a cut.

    Announced to the neighbours if it is pending in the book, so admit it first, and report it
    once.
    """

    header: DeltaHeader


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """A pull came to nothing: the peer does not have it, or what it sent is not what it names."""

    peer: bytes
    key: DeltaKey


@dataclass(frozen=True, slots=True)
class Refused:
    """What came under this name is sound but of no use now (stale, future): do not ask again for
    a while, of anybody."""

    key: DeltaKey


@dataclass(frozen=True, slots=True)
class Wanted:
    """A cut names these: pull them by id, settled or not, and try until they are held. `peer` is
    asked first, if it is linked."""

    items: tuple[DeltaReference, ...]
    peer: bytes | None = None


@dataclass(frozen=True, slots=True)
class Unwanted:
    """No cut names these any more."""

    keys: tuple[DeltaKey, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; a few times a second is enough."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell a peer that these are held here."""

    peer: bytes
    items: tuple[DeltaReference, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Pull these from a peer. Each ends with Held, Refused or FetchFailed, or times out here."""

    peer: bytes
    items: tuple[DeltaReference, ...]


@dataclass(frozen=True, slots=True)
class SendSummary:
    """Send the book's summary, as it is now, to a peer."""

    peer: bytes


Event: TypeAlias = (
    LinkUp
    | LinkDown
    | Announced
    | SummaryReceived
    | Held
    | FetchFailed
    | Refused
    | Wanted
    | Unwanted
    | Tick
)
Effect: TypeAlias = Announce | Fetch | SendSummary
