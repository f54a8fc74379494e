"""Measurements and the checkpoints that they are made on; no part of the package."""
