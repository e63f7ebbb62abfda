"""The command line: one file per group of verbs; `app` lists them all, `options` and `output` hold what they share."""

from distill.cli.exits import main

__all__ = ["main"]
