"""Compiled C++ and Triton, each beside its definition in torch; noise.

The torch code stays the definition, and computes where nothing could be compiled. Layers stand in `native`. Begin with
`noise.definition` and `build`.
"""

from zoquant.kernels.build import library
from zoquant.kernels.choice import NoiseKernels, WriteKernels, factor_kernels, noise_kernels, status, write_kernels

__all__ = [
    "NoiseKernels",
    "WriteKernels",
    "factor_kernels",
    "library",
    "noise_kernels",
    "status",
    "write_kernels",
]
