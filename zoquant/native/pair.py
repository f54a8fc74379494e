"""Both probes of a pair in one forward: a matrix and its twin, which has the same codes and values of its own."""

import copy

import torch
from torch import Tensor

from zoquant.errors import ShapeError
from zoquant.native.on_gpu import multiplied
from zoquant.native.packed import PackedWeight


def twin_of(packed: PackedWeight) -> PackedWeight:
    """Return a matrix of the same memory but for its continuous fields, which are copied."""
    with torch.inference_mode(False):
        own = {id(value): value.clone() for value in (packed.value(field.name) for field in packed.fields)}
    shared = {id(buffer): buffer for buffer in packed.buffers()}
    return copy.deepcopy(packed, {**shared, **own})


def pair_product(x: Tensor, packed: PackedWeight, twin: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return the first half of x times one matrix and the second half times the other, `[tokens, rows]`.

    Args:
        x: `[tokens, columns]`, an even number of tokens.
        packed: the matrix of the first half.
        twin: what `twin_of` made of it.
        dtype: dtype that x and both matrices are rounded to.

    Raises:
        ShapeError: the number of tokens is odd.
    """
    first, second = halves(x)
    found = multiplied(x, packed, dtype, twin)
    return torch.cat([packed.product(first, dtype), twin.product(second, dtype)]) if found is None else found


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the second half of some rows.

    Raises:
        ShapeError: there is an odd number of them.
    """
    if len(x) % 2:
        raise ShapeError(
            f"a pair of probes: expected an even number of rows, one half for each probe, got {tuple(x.shape)}. "
            "Put the batch twice, one below the other."
        )
    first, second = x.chunk(2) if len(x) else (x, x)
    return first, second
