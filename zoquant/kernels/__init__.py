"""Compiled kernels for the CPU: optional, built on first use, equal to the torch code bit for bit."""

from zoquant.kernels.build import library, status

__all__ = ["library", "status"]
