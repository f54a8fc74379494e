"""What passes between layers in fewer bits: half the memory to hold, to read and to write beside the products."""

from typing import Any

import torch
from torch import Tensor, nn

from zoquant.native.experts import QuantExperts
from zoquant.native.layers import QuantEmbedding, QuantLinear


def pass_activations(model: nn.Module, dtype: torch.dtype) -> None:
    """Let what passes between the layers of a model be in `dtype`.

    Lookup tables return it, and packed layers return what they get. A plain layer, such as a normalization, computes in
    the dtype of its parameters, which stay as they are: it gets that dtype, and what it returns is rounded.

    Args:
        model: a model on native layers.
        dtype: float32, bfloat16 or float16.
    """
    for module in model.modules():
        if isinstance(module, QuantEmbedding):
            module.dtype = dtype
        own = next((p.dtype for p in module._parameters.values() if p is not None and p.is_floating_point()), dtype)
        if own != dtype and not isinstance(module, QuantLinear | QuantExperts):
            module.register_forward_pre_hook(_Arguments(own), with_kwargs=True)
            module.register_forward_hook(_Result(dtype))


class _Arguments:
    """Gives a module floating-point arguments of its own dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = {name: _cast(value, self.dtype) for name, value in kwargs.items()}
        return tuple(_cast(arg, self.dtype) for arg in args), named


class _Result:
    """Rounds what a module returns."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(_cast(part, self.dtype) for part in result)
        return _cast(result, self.dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
