"""The one way an export fails: a graph that may not ship."""


class ExportRefused(Exception):
    """The gate, the checker or parity refused a graph; nothing was written under its name."""
