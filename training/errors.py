"""The one exception of this folder that a person is meant to read.

Everything that a user can cause (a wrong path, text that is too short, a learning rate that makes
the weights explode) becomes a TrainingError, whose message is one line: what is wrong, where, and
what to do about it. A broken invariant of ours stays an AssertionError.
"""


class TrainingError(ValueError):
    """Training cannot start or go on; the message is one line for the user."""
