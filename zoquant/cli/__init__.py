"""The command line: `zoquant backends | inspect | train | report | eval | export | replay | bench`."""

from zoquant.cli.app import main

__all__ = ["main"]
