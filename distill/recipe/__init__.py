"""The recipe of a run: its keys with defaults and bounds (keys), and how recipes are read and written (files)."""
