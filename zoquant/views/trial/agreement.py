"""Whether a layer computes what its dequantized weight says, up to the rounding of its dtype, and by how much not."""

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
COARSEST = 5e-2


def disagreement(got: Tensor, expected: Tensor, bound: float, *, scale: Tensor | None = None) -> str:
    """Return how numbers differ from those that were expected: `"0.12 away from"`, `"1.01 times"`; empty if they agree.

    Args:
        got: numbers of any shape.
        expected: numbers of the same shape.
        bound: how far they may be away, relative to the norm.
        scale: numbers whose norm a difference is measured by; None for `expected`.
    """
    got, expected = got.double(), expected.double()
    size = (expected if scale is None else scale.double()).norm().clamp_min(1e-30)
    error = float((got - expected).norm() / size)
    if error <= bound:
        return ""
    factor = float((got * expected).sum() / expected.square().sum().clamp_min(1e-30))
    if float((got - factor * expected).norm() / size) < error / 10:
        return f"{factor:.5g} times"
    text = f"{error:.2g}"
    return f"{text if float(text) > bound else f'{error:.6g}'} away from"


def product(module: torch.nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """Return what a layer should compute with a weight: rows of a table, or a product and its plain bias, float32."""
    y = x.float() @ weight.t() if x.is_floating_point() else weight[x]
    bias = getattr(module, "bias", None)
    return y + bias.detach().float() if isinstance(bias, Tensor) else y
