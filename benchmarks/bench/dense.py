"""The same model with plain layers, as transformers has it, or with products in another dtype."""

import copy
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from zoquant.native import PackedWeight, QuantEmbedding, QuantExperts, QuantLinear
from zoquant.native.activations import pass_activations
from zoquant.native.meta import ModuleSlots

_ROOM = 0.8
"""Share of the free memory that a copy may take: activations need some, too."""


def make_dense(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put plain linear layers and embeddings in the place of packed ones, in `dtype` throughout, and return the model.

    A packed matrix is dropped as soon as its dense one is there, so little more memory is taken than stays. Layers that
    share a matrix share the dense one.
    """
    holders: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, QuantLinear | QuantEmbedding):
            holders.setdefault(id(module.packed), []).append(path)
    places = ModuleSlots(model)
    for paths in holders.values():
        weight = _weight(_layer(model, paths[0]).packed, dtype)
        for path in paths:
            places.replace(path, _plain(_layer(model, path), weight))
    return model.to(dtype)


def shared_copy(model: nn.Module) -> nn.Module:
    """Return a copy that shares the packed matrices with the model: what is written to one is written to both."""
    shared: dict[int, Any] = {id(each): each for each in model.modules() if isinstance(each, PackedWeight)}
    return copy.deepcopy(model, shared)


def native_copy(model: nn.Module, dtype: torch.dtype, *, activations: torch.dtype = torch.float32) -> nn.Module:
    """Return a copy that shares the packed matrices and multiplies in `dtype`.

    Args:
        model: a model on native layers, with activations in float32.
        dtype: dtype of the products.
        activations: dtype of what passes between the layers.
    """
    native = shared_copy(model)
    for module in native.modules():
        if isinstance(module, QuantLinear):
            module.compute_dtype = dtype
    pass_activations(native, activations)
    return native


def weights_of(model: nn.Module) -> int:
    """Return how many numbers the dense model would have; shared ones count once."""
    packed = sum(each.rows * each.columns for each in model.modules() if isinstance(each, PackedWeight))
    return packed + sum(parameter.numel() for parameter in model.parameters())


def why_not_dense(model: nn.Module, bytes_a_weight: int) -> str | None:
    """Return why so many bytes a weight cannot be had beside what is there; None if they can."""
    if any(isinstance(module, QuantExperts) for module in model.modules()):
        return "not measured: experts have no dense copy here"
    packed = next((each for each in model.modules() if isinstance(each, PackedWeight)), None)
    if packed is None:
        return "not measured: the layers are not zoquant's own"
    needed, free = bytes_a_weight * weights_of(model), _free_bytes(packed.device)
    return None if needed <= _ROOM * free else f"does not fit: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free"


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _layer(model: nn.Module, path: str) -> Any:
    return model.get_submodule(path)


def _weight(packed: PackedWeight, dtype: torch.dtype) -> nn.Parameter:
    """Decode a tile at a time, so that no second copy of the matrix exists in float32."""
    weight = torch.empty(packed.rows, packed.columns, dtype=dtype, device=packed.device)
    for rows, tile in packed.tiles(dtype):
        weight[rows] = tile
    return nn.Parameter(weight, requires_grad=False)


class ScaledEmbedding(nn.Embedding):
    """Looks rows up and multiplies them, as Gemma does."""

    factor = 1.0

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of `ids` times the factor."""
        return super().forward(ids) * self.factor


def _plain(layer: QuantLinear | QuantEmbedding, weight: nn.Parameter) -> nn.Module:
    """Return the plain layer that computes what a packed one does."""
    rows, columns = weight.shape
    if isinstance(layer, QuantLinear):
        linear = nn.Linear(columns, rows, bias=layer.bias is not None, device="meta")
        linear.weight = weight
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias.clone(), requires_grad=False)
        return linear
    embedding = (nn.Embedding if layer.scale is None else ScaledEmbedding)(rows, columns, device="meta")
    embedding.weight = weight
    if isinstance(embedding, ScaledEmbedding) and layer.scale is not None:
        embedding.factor = layer.scale
    return embedding
