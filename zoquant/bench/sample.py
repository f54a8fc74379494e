"""The batch that is measured on, and a loss that costs what classification costs."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.native import QuantEmbedding, QuantLinear
from zoquant.scoring import hidden_states, logits_at


def sample_ids(model: nn.Module, batch: int, length: int) -> Tensor:
    """Return random token ids, int64 `[batch, length]`, the same on every call."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    return ids.to(next(model.buffers()).device)


def row_losses(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the loss of each row, float32 `[batch]`: the logits of two tokens at the last position."""
    logits = logits_at(model, hidden_states(model, ids)[:, -1], ids[0, :2])
    return nn.functional.cross_entropy(logits, torch.zeros_like(ids[:, 0]), reduction="none")


def sample_loss(model: nn.Module, ids: Tensor) -> float:
    """Return the mean of `row_losses`, without gradients."""
    with torch.no_grad():
        return float(row_losses(model, ids).mean())


def dense_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the same model with plain linear layers, in `dtype` throughout; embeddings stay packed."""
    shared: dict[int, Any] = {id(each.packed): each.packed for each in model.modules() if hasattr(each, "packed")}
    dense = copy.deepcopy(model, shared)
    for path, module in list(dense.named_modules()):
        if isinstance(module, QuantEmbedding):
            module.dtype = dtype
        if isinstance(module, QuantLinear):
            linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
            linear.weight = nn.Parameter(module.packed.dequantize(), requires_grad=False)
            if module.bias is not None:
                linear.bias = nn.Parameter(module.bias.clone(), requires_grad=False)
            parent, _, name = path.rpartition(".")
            setattr(dense.get_submodule(parent), name, linear)
    return dense.to(dtype)


def with_compute_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Let the native linear layers of a model multiply in `dtype`, and return it."""
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.compute_dtype = dtype
    return model
