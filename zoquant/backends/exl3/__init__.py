"""Checkpoints of ExLlamaV3."""
