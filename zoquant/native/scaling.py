"""Factors on what goes into a matrix and what comes out, for each block of neighbouring rows of x."""

from torch import Tensor, mul

from zoquant.kernels.matmul import spread
from zoquant.native.workspace import scratch


def scaled_input(x: Tensor, factors: Tensor) -> Tensor:
    """Return x times its factors, rounded to the dtype of x, in scratch memory.

    Args:
        x: `[rows, ..., columns]`, rows a multiple of the blocks.
        factors: float32 `[blocks, columns / n]`; n neighbours share one.
    """
    out = scratch(tuple(x.shape), x.dtype, x.device, "probe")
    mul(_blocks(x, factors), _beside(factors, x), out=_blocks(out, factors))
    return out


def scale_output(y: Tensor, factors: Tensor) -> Tensor:
    """Multiply y in place by its factors, as `scaled_input` has them, and return it."""
    _blocks(y, factors).mul_(_beside(factors, y))
    return y


def _blocks(x: Tensor, factors: Tensor) -> Tensor:
    """Return `[rows, ...]` as `[blocks, rows of a block, ...]`, of the same memory."""
    return x.view(len(factors), -1, *x.shape[1:])


def _beside(factors: Tensor, x: Tensor) -> Tensor:
    """Return a factor for each column, `[blocks, 1, ..., columns]`, to multiply the blocks of x."""
    return spread(factors, x.shape[-1]).view(len(factors), *[1] * (x.dim() - 1), -1)
