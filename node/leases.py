"""Promises not to delete: what is being fetched stays until the fetch has ended or gone quiet.

A fetch of a checkpoint is many requests with pauses between them, from somebody this node need not
know and cannot tell from others. So there is no reader to count: every request leases what it
touches for a while, a fetcher that goes on renews that by going on, and one that died lets it
lapse. Time is an argument: seconds that never decrease.
"""

# The whole height, where a piece's address would stand.
WHOLE = b"*"
QUIET_S = 60.0


class Leases:
    """The leases of one node, by (height, address)."""

    def __init__(self, quiet_s: float = QUIET_S) -> None:
        """quiet_s: how long after the last request a lease lasts."""
        self._quiet_s = quiet_s
        self._until: dict[tuple[int, bytes], float] = {}

    def take(self, height: int, address: bytes, now: float) -> None:
        """Somebody asks for a piece, or for the description of a height (WHOLE).

        Asking for a piece goes on with a lease of the whole height, but does not begin one: that
        is for those who mean to fetch all of it, and they ask for the description first.
        """
        self._sweep(now)
        until = now + self._quiet_s
        self._until[height, address] = until
        if (height, WHOLE) in self._until:
            self._until[height, WHOLE] = until

    def held(self, height: int, address: bytes, now: float) -> bool:
        """Whether a piece must stay (WHOLE: whether the height must stay as it is)."""
        self._sweep(now)
        return (height, address) in self._until or (height, WHOLE) in self._until

    def _sweep(self, now: float) -> None:
        # In the order of their beginnings, not their ends; there are few, so all are looked at.
        self._until = {key: until for key, until in self._until.items() if until > now}
