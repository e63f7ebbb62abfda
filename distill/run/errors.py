"""The errors that a user can see, by exit code. Each message is one line: the problem, the place, and the way out."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """Cannot run: wrong usage, missing or unusable input. Exit code 2."""


class GateFailed(Exception):
    """A gate or check failed. Exit code 1."""


class Interrupted(Exception):
    """Stopped by the user, after saving; the same command resumes. Exit code 130."""


@contextmanager
def usage_errors(where: str = "") -> Iterator[None]:
    """Raises UsageError where the block raises ValueError, with `where` before the message."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{where}{error}") from None
