"""The errors that a user can see, by exit code. Each message is one line: what is wrong, where, and the way out."""


class UsageError(Exception):
    """Cannot run: wrong usage, missing or unusable input. Exit code 2."""


class GateFailed(Exception):
    """A gate or check failed. Exit code 1."""


class Interrupted(Exception):
    """Stopped by the user, after saving; the same command resumes. Exit code 130."""
