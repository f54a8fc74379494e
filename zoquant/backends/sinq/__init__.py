"""Checkpoints of SINQ: a scale for every group of a row and one for every column."""
