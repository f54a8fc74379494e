"""Factors on what goes into a matrix and what comes out, for each block of rows of x."""

import torch
from torch import Tensor

from zoquant.kernels.products.matmul import spread
from zoquant.kernels.workspace import scratch


def scaled_input(x: Tensor, factors: Tensor, block: Tensor | None = None) -> Tensor:
    """Return x times its factors, rounded to the dtype of x, in scratch memory.

    Args:
        x: `[rows, ..., columns]`.
        factors: float32 `[blocks, columns / n]`; n neighbours share one.
        block: which block each place of x is in, integers `[rows, ...]`; None where x is cut into equal blocks of
            neighbouring rows.
    """
    out = scratch(tuple(x.shape), x.dtype, x.device, "probe")
    torch.mul(_blocks(x, factors, block), _beside(factors, x, block), out=_blocks(out, factors, block))
    return out


def scale_output(y: Tensor, factors: Tensor, block: Tensor | None = None) -> Tensor:
    """Multiply y in place by its factors, as `scaled_input` has them, and return it."""
    _blocks(y, factors, block).mul_(_beside(factors, y, block))
    return y


def shift_output(y: Tensor, factors: Tensor, bias: Tensor, block: Tensor | None = None) -> Tensor:
    """Add (1 − factors) · bias to y in place and return it: what scaling made of a bias is what it was."""
    _blocks(y, factors, block).addcmul_(bias.to(y.dtype), (1 - _beside(factors, y, block)).to(y.dtype))
    return y


def _beside(factors: Tensor, x: Tensor, block: Tensor | None) -> Tensor:
    """Return a factor for each number of x, to multiply its blocks."""
    wide = spread(factors, x.shape[-1])
    return wide.view(len(factors), *[1] * (x.dim() - 1), -1) if block is None else wide[block]


def _blocks(x: Tensor, factors: Tensor, block: Tensor | None) -> Tensor:
    """Return `[rows, ...]` as `[blocks, rows of a block, ...]`, of the same memory, where blocks are neighbours."""
    return x.view(len(factors), -1, *x.shape[1:]) if block is None else x
