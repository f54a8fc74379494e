"""The check of `attach`: does a value written through a view change the output of its layer as predicted?"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import Backend, ScaleView, Uncached

_FACTOR = 1.5
_INSTEAD_OF_ZERO = 0.5
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def verify_layer(path: str, module: nn.Module, backend: Backend, views: Sequence[ScaleView]) -> None:
    """Write each view of a layer, run the layer, compare, and write the old values back, unless nothing is cached.

    Raises:
        UnsupportedLayoutError: the layer's output does not agree with `dequantize`, or did not follow a write.
    """
    if isinstance(backend, Uncached) and not backend.cached:
        return
    x = backend.sample_input(module)
    before = _agreed_output(path, module, backend, x, "before any write")
    for view in views:
        old = view.read()
        try:
            view.write(torch.where(old == 0, _INSTEAD_OF_ZERO, old * _FACTOR))
            after = _agreed_output(path, module, backend, x, f"after a write to {view.name!r}")
            if torch.equal(after, before) and backend.dequantize(module).any():
                raise UnsupportedLayoutError(
                    f"{path}.{view.name} ({backend.name}): the output did not change when the values were multiplied "
                    f"by {_FACTOR}. The kernel of {type(module).__name__} keeps a copy of its own: load the model with "
                    "the library's plain torch kernel, or with zoquant.load(..., runtime='native')."
                )
        finally:
            view.write(old)


def _agreed_output(path: str, module: nn.Module, backend: Backend, x: Tensor, when: str) -> Tensor:
    """Return the module's output, after comparing it with the dequantized weight's."""
    with torch.no_grad():
        y: Tensor = module(x)
        weight = backend.dequantize(module)
        bias = getattr(module, "bias", None)
        expected = weight[x] if not x.is_floating_point() else x.float() @ weight.t()
        if isinstance(bias, Tensor):
            expected = expected + bias.float()
    error = float((y.float() - expected).norm() / expected.norm().clamp_min(1e-30))
    tolerance = _TOLERANCE.get(y.dtype, 5e-2)
    if not error <= tolerance:
        raise UnsupportedLayoutError(
            f"{path} ({backend.name}): {when} the output of {type(module).__name__} is {error:.1e} away from its "
            f"dequantized weight, expected at most {tolerance:.0e}. The kernel does not compute what its values say: "
            "load the model with the library's plain torch kernel, or with zoquant.load(..., runtime='native')."
        )
    return y
