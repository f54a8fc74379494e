"""Views of diffusers' GGUF layers: the fp16 fields of the blocks, in the packed bytes that the forward reads.

The weight of a `GGUFLinear` is a `GGUFParameter`, the blocks of the file as uint8 `[rows, bytes]`. It is dequantized at
every forward, so there is no cache to refresh.

Source: diffusers 0.42.1, quantizers/gguf/utils.py (`GGUFParameter`, `GGUFLinear`, `dequantize_gguf_tensor`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.backends.gguf.blocks import CODECS, BlockCodec
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import DenseWeight, PackedWeight, QuantWeight
from zoquant.protocol import ScaleView
from zoquant.views.packed_backend import PackedBackend, random_input
from zoquant.views.tensor_views import BytesView


class GGUFLinearBackend(PackedBackend):
    """Serves `GGUFLinear`: one view for each continuous field of a block, such as `d` and `dmin`."""

    name = "gguf-diffusers"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the views, `[rows, groups]` each; a weight of BF16 has one of role `dense`."""
        blocks = _blocks(module)
        if _type(module) == "BF16":
            rows, columns = blocks.shape[0], blocks.shape[1] // 2
            return [_view("weight", "dense", blocks, 0, (rows, columns), 2, torch.bfloat16)]
        codec = _codec(module)
        shape = blocks.shape[0], blocks.shape[1] // codec.nbytes
        return [
            _view(field.name, field.role, blocks, start, shape, codec.nbytes, field.dtype)
            for field, start in zip(codec.fields, codec.offsets, strict=True)
        ]

    def packed(self, module: nn.Module) -> PackedWeight:
        """Return the matrix on zoquant's own codec: a copy of the blocks."""
        blocks = _blocks(module)
        if _type(module) == "BF16":
            return DenseWeight(blocks.view(torch.bfloat16))
        codec = _codec(module)
        return QuantWeight(codec, *codec.split(blocks.view(blocks.shape[0], -1, codec.nbytes)))

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return random numbers `[2, in_features]` in the dtype that the layer multiplies in."""
        layer: Any = module
        return random_input(layer.in_features, _blocks(module).device, layer.compute_dtype)


def _view(name: str, role: Any, blocks: Tensor, start: int, shape: Any, step: int, dtype: torch.dtype) -> BytesView:
    return BytesView(name, role, blocks, offset=start, shape=shape, strides=(blocks.shape[1], step), dtype=dtype)


def _type(module: nn.Module) -> str:
    """Return ggml's name of the type of a layer's blocks."""
    kind = getattr(module.weight, "quant_type", None)
    return "none" if kind is None else str(kind.name)


def _blocks(module: nn.Module) -> Tensor:
    """Return the packed blocks as a plain tensor that shares their memory, uint8 `[rows, bytes]`."""
    weight: Any = module.weight
    if _type(module) == "none" or weight.dtype != torch.uint8 or weight.dim() != 2 or not weight.is_contiguous():
        raise UnsupportedLayoutError(
            f"the weight of {type(module).__name__} is a {type(weight).__name__} of {weight.dtype}, expected the "
            "packed blocks of a GGUF file. Load the model with from_single_file and a GGUFQuantizationConfig."
        )
    blocks: Tensor = weight.as_tensor().detach()
    return blocks


def _codec(module: nn.Module) -> BlockCodec:
    codec = CODECS.get(_type(module))
    if codec is None:
        raise UnsupportedLayoutError(
            f"blocks of type {_type(module)}, expected one of {', '.join(CODECS)}. Leave the layer out of attach "
            "with exclude=, or quantize the file to another type."
        )
    return codec
