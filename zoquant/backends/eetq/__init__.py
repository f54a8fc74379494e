"""Checkpoints of EETQ."""
