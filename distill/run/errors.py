"""The errors a user can meet, by what the process exits with. Each message is one line: what, where, the way out."""


class UsageError(Exception):
    """Could not run: wrong usage, missing or unusable input. Exit code 2."""


class GateFailed(Exception):
    """A gate or check failed. Exit code 1."""


class Interrupted(Exception):
    """Stopped by the user after saving; the same command goes on. Exit code 130."""
