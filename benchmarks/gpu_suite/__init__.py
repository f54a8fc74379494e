"""Speed and memory of the native layers on a GPU, at the true shapes of large models, without a checkpoint.

    python -m benchmarks.gpu_suite --out benchmarks/results
    python -m benchmarks.gpu_suite --parts checks products          # only some of it
    python -m benchmarks.gpu_suite --tiny --device cpu              # tests the suite where there is no GPU

It needs torch, transformers and triton, no network, and runs from the repository without an installation. Packed words
and scales are random: they cost what real ones cost. First the kernels are compared with the CPU.
"""

from benchmarks.gpu_suite.suite import PARTS, suite
from benchmarks.gpu_suite.table import lines

__all__ = ["PARTS", "lines", "suite"]
