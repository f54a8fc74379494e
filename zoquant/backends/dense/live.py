"""Views of plain parameters: the weights themselves, of any module. MeZO's own case.

Source: MeZO (arXiv 2305.17333) moves every parameter of a dense model.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import ScaleView
from zoquant.views.packed_backend import random_input, some_rows
from zoquant.views.stored_form import plain_view

PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The dtypes of plain weights; narrower floats are codes, which need a scale beside them."""


class DenseBackend:
    """Serves every module that holds plain floating-point parameters itself, whatever its class."""

    name = "dense"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return a view of every plain parameter that the module itself holds, and of its bias wherever it is kept."""
        views: list[ScaleView] = []
        for name, tensor in _plain(module):
            if tensor.is_meta:
                raise UnsupportedLayoutError(
                    f"{name}: on the meta device, expected numbers in memory. Load the model without offloading."
                )
            views.append(plain_view(module, name, tensor))
        return views

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the weight, float32 `[out_features, in_features]`; for a lookup table `[rows, columns]`."""
        weight = _matrix(module).detach().float()
        return weight.t() if _is_transposed(module) else weight

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the dtype of the weight, or indices `[n]` for a lookup table."""
        weight = _matrix(module)
        if isinstance(module, nn.Embedding):
            return some_rows(module.num_embeddings, weight.device)
        return random_input(weight.shape[0 if _is_transposed(module) else 1], weight.device, weight.dtype)


def _plain(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters, and a bias that is a buffer or an attribute, as the layers of many libraries have it."""
    held: dict[str, Any] = dict(module._parameters)
    if "bias" not in held:
        held["bias"] = module._buffers.get("bias", vars(module).get("bias"))
    for name, tensor in held.items():
        if type(tensor) in (nn.Parameter, Tensor) and tensor.dtype in PLAIN:
            yield name, tensor


def _matrix(module: nn.Module) -> Tensor:
    weight = module._parameters.get("weight")
    if (
        weight is None
        or weight.dim() != 2
        or not (isinstance(module, nn.Linear | nn.Embedding) or _is_transposed(module))
    ):
        raise UnsupportedLayoutError(f"a {type(module).__name__} does not multiply with one matrix.")
    return weight


def _is_transposed(module: nn.Module) -> bool:
    """Whether the module is the Conv1D of transformers: a linear layer whose weight is `[in, out]`."""
    return (type(module).__module__, type(module).__name__) == ("transformers.pytorch_utils", "Conv1D")
