"""Damaged checkpoints against every parser of a registered format: see `python -m fuzz --help`."""
