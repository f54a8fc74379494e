"""Compiled C++ and Triton, each beside its definition in torch; noise.

The torch code stays the definition, and computes where nothing could be compiled. Layers stand in `native`. Begin with
`noise.definition` and `build`.
"""

from zoquant.kernels.build import library, status

__all__ = ["library", "status"]
