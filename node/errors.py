"""The errors that a person can act on: one line, no traceback, an exit code for scripts.

Anything that is not one of these is our fault: it is logged with its traceback and the process
ends with exit code 1.
"""

OK = 0
INTERNAL = 1
# Also of a fault of ours, but nobody confuses the two: that one leaves a traceback.
NOT_ADMITTED = 1
BAD_INPUT = 2
UNREACHABLE = 3
DAMAGED = 4
# What `shoal doctor` found; it did its work, so these are no errors of its own.
WARNINGS = 5
PROBLEMS = 6
INTERRUPTED = 130


# The end of a message says what to do, so a long one loses its middle.
MESSAGE_MAX = 1200


def one_line(text: str) -> str:
    """Text that may quote a file, or another machine, as one line that a terminal only shows."""
    shown = "".join(each if each.isprintable() else " " for each in text)
    if len(shown) <= MESSAGE_MAX:
        return shown
    return f"{shown[: MESSAGE_MAX // 2]} ... {shown[-MESSAGE_MAX // 2 :]}"


class UserError(Exception):
    """Something the user can put right; the message says what is wrong and what to do."""

    def __init__(self, message: str, exit_code: int = BAD_INPUT) -> None:
        super().__init__(one_line(message))
        self.exit_code = exit_code


class UnreachableError(UserError):
    """The other side does not answer, or refused us."""

    def __init__(self, message: str) -> None:
        super().__init__(message, UNREACHABLE)


class NotAdmittedError(UserError):
    """The mesh does not let this node in, and asking again would not help."""

    def __init__(self, message: str) -> None:
        super().__init__(message, NOT_ADMITTED)


class DamagedError(UserError):
    """What lies on this disk is not what was written; nothing was changed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, DAMAGED)


class PeerError(ValueError):
    """A peer sent what it must not; `reason` is the counter's label in `shoal status`.

    proof: a signed boot that shows the peer why (boots.py).
    """

    def __init__(self, reason: str, detail: str = "", *, proof: bytes = b"") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.proof = proof
