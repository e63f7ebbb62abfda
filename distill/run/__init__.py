"""A run: its directory, its stages, and helpers that all long tasks share."""
