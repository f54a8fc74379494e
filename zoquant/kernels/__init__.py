"""Compiled kernels for the CPU: optional, built on first use.

Decoding and noise give the bits of the torch code. The matrix product gives those of no torch code: see
`zoquant.kernels.products.matmul`.
"""

from zoquant.kernels.build import library, status

__all__ = ["library", "status"]
