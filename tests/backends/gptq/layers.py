"""Small layers of GPTQModel and AutoGPTQ, the same bytes every time."""

from importlib import import_module
from typing import Any

import torch
from torch import nn

from tests.backends.gptq.reference import random_gptq
from zoquant.registry import backend_of


def gptqmodel_layer(
    name: str, *, bits: int = 4, group_size: int = 32, act_order: bool = False, sym: bool = False, bias: bool = True,
    dtype: torch.dtype = torch.float16, columns: int = 64, rows: int = 32,
) -> nn.Module:  # fmt: skip
    """Return a layer of GPTQModel as its loader leaves it: zeros as `gptq_v2` has them, and `post_init` called.

    Args:
        name: `module.Class` within gptqmodel.nn_modules.qlinear.
        bits, group_size, act_order, sym: see `random_gptq`.
        bias: whether it has one.
        dtype: of scales and bias, as the model was loaded.
        columns: input features.
        rows: output features.
    """
    kind: Any = {"bits": bits, "group_size": group_size, "sym": sym}
    layer: Any = gptqmodel_class(name)(
        **kind, desc_act=act_order, in_features=columns, out_features=rows, bias=bias, register_buffers=True
    )
    tensors = random_gptq("", rows, columns, act_order=act_order, minus_one=False, dtype=dtype, **kind)
    for key, tensor in tensors.items():
        layer.register_buffer(key.removeprefix("."), tensor)
    if bias:
        layer.bias = torch.linspace(-1, 1, rows).to(dtype)
    layer.qzero_format(format=2)
    layer.post_init()
    return layer.eval()  # type: ignore[no-any-return]


def gptqmodel_embedding(**changes: Any) -> nn.Module:
    """Return a table of 64 rows and 32 columns, packed by GPTQModel."""
    return gptqmodel_layer("torch.TorchQuantEmbeddings", bias=False, **changes)


def warm(layer: nn.Module) -> nn.Module:
    """Run a layer once: some kernels arrange their words at their first forward."""
    backend = backend_of(layer)
    assert backend is not None
    backend.open(layer)
    with torch.no_grad():
        layer(backend.sample_input(layer))
    return layer


def gptqmodel_class(name: str) -> Any:
    """Return a class of GPTQModel."""
    module, _, cls = name.rpartition(".")
    return getattr(import_module(f"gptqmodel.nn_modules.qlinear.{module}"), cls)


def auto_gptq_layer(
    module: str, *, bits: int = 4, group_size: int = 32, act_order: bool = False, sym: bool = False,
    dtype: torch.dtype = torch.float32, columns: int = 64, rows: int = 32,
) -> nn.Module:  # fmt: skip
    """Return a layer of AutoGPTQ, the class `QuantLinear` of one of its modules."""
    cls = import_module(f"auto_gptq.nn_modules.qlinear.{module}").QuantLinear
    layer: Any = cls(bits, group_size, columns, rows, True, weight_dtype=dtype)
    kind: Any = {"bits": bits, "group_size": group_size, "act_order": act_order, "sym": sym, "dtype": dtype}
    for key, tensor in random_gptq("", rows, columns, **kind).items():
        layer.register_buffer(key.removeprefix("."), tensor)
    layer.bias = torch.linspace(-1, 1, rows).to(dtype)
    return layer.eval()  # type: ignore[no-any-return]
