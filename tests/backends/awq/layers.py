"""Small AWQ layers of GPTQModel and AutoAWQ, the same bytes every time."""

from importlib import import_module
from typing import Any

import torch
from torch import nn

from tests.backends.awq.reference import random_awq
from tests.backends.gptq.layers import gptqmodel_class


def gptqmodel_awq(
    name: str, *, bits: int = 4, bias: bool = True, dtype: torch.dtype = torch.float16, columns: int = 64,
    rows: int = 32, layout: str = "gemm", group_size: int = 32,
) -> nn.Module:  # fmt: skip
    """Return a layer of GPTQModel as its loader leaves it, `post_init` called.

    Args:
        name: `module.Class` within gptqmodel.nn_modules.qlinear.
        bits: what the layer is told; the words are always of 4.
        bias: whether it has one.
        dtype: of scales and bias, as the model was loaded.
        columns: input features.
        rows: output features.
        layout: the layout of its words.
        group_size: columns of a group.
    """
    layer: Any = gptqmodel_class(name)(
        bits=bits, group_size=group_size, sym=False, desc_act=False, in_features=columns, out_features=rows, bias=bias,
        register_buffers=True, dtype=dtype,
    )  # fmt: skip
    zeros = getattr(layer, "zeros_name", "qzeros")
    tensors, _ = random_awq("", rows, columns, layout=layout, group_size=group_size, dtype=dtype, zeros_name=zeros)
    for key, tensor in tensors.items():
        layer.register_buffer(key.removeprefix("."), tensor)
    if bias:
        layer.bias = torch.linspace(-1, 1, rows).to(dtype)
    layer.post_init()
    return layer.eval()  # type: ignore[no-any-return]


def auto_awq(name: str, layout: str, *, columns: int = 64, rows: int = 32) -> nn.Module:
    """Return a layer of AutoAWQ, on the CPU.

    Args:
        name: `module.Class` within awq.modules.linear.
        layout: the layout of its words.
        columns: input features.
        rows: output features.
    """
    module, _, cls = name.rpartition(".")
    layer: Any = getattr(import_module(f"awq.modules.linear.{module}"), cls)(4, 32, columns, rows, True, "cpu")
    for key, tensor in random_awq("", rows, columns, layout=layout)[0].items():
        layer.register_buffer(key.removeprefix("."), tensor)
    layer.bias = torch.linspace(-1, 1, rows).half()
    return layer.eval()  # type: ignore[no-any-return]
