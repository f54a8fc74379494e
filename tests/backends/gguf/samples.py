"""A small GGUF layer of diffusers, the same bytes every time."""

from collections.abc import Callable
from typing import Any

import gguf
import torch
from torch import nn

from tests.backends.gguf.files import random_blocks
from zoquant.backends.gguf.blocks import CODECS


def gguf_linear(kind: str = "Q4_1", *, rows: int = 12, groups: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    """Return a layer of random blocks of one type, as `from_single_file` makes it."""
    from diffusers.quantizers.gguf import utils

    codec = CODECS[kind]
    blocks = torch.from_numpy(random_blocks(codec, rows, groups)).flatten(1)
    layer = utils.GGUFLinear(groups * codec.block, rows, True, dtype)
    layer.weight = utils.GGUFParameter(blocks, quant_type=gguf.GGMLQuantizationType[kind])
    layer.bias = nn.Parameter(torch.linspace(-0.01, 0.01, rows), requires_grad=False)
    return layer


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {"diffusers.quantizers.gguf.utils.GGUFLinear": gguf_linear}
