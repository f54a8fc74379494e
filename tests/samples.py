"""A small sample for every registered backend and format: `tests/test_conformance.py` fails for one without."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tests.bitsandbytes import samples as bitsandbytes
from tests.peft import samples as peft
from tests.toy import toy_layer
from zoquant.native import QuantEmbedding


def native_linear() -> nn.Module:
    return toy_layer(bias=True)


def native_embedding() -> nn.Module:
    return QuantEmbedding(toy_layer().packed, scale=1.5)


def hqq_linear(
    nbits: float = 4, *, axis: int = 1, group_size: int | None = 16, dtype: torch.dtype = torch.float32,
    view_as_float: bool = False, bias: bool = False,
) -> nn.Module:  # fmt: skip
    """Return an HQQLinear [16 -> 24] with the same bytes every time."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Linear(16, 24, bias=bias).requires_grad_(False)
    config = BaseQuantizeConfig(nbits=nbits, group_size=group_size, axis=axis, view_as_float=view_as_float)
    layer: nn.Module = HQQLinear(linear, config, compute_dtype=dtype, device="cpu")
    return layer


def dense_linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(16, 24)


def gguf_file(folder: Path) -> Path:
    """Write a llama of one layer, every matrix of another type."""
    from tests.gguf.files import TinyFile
    from tests.gguf.models import tiny

    types = ("Q8_0", "Q4_K", "Q6_K", "Q4_0", "Q5_1", "Q2_K", "IQ4_NL", "Q3_K")
    return TinyFile("llama", tiny("llama", num_hidden_layers=1), types=types).write(folder / "tiny.gguf")


def dense_folder(folder: Path) -> Path:
    """Write a llama of one layer in bfloat16, in two shards."""
    from tests.folders import save_folder, tiny_llama

    return save_folder(tiny_llama().to(torch.bfloat16), folder / "dense", shards=2)


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {
    "zoquant.native.layers.QuantLinear": native_linear,
    "zoquant.native.layers.QuantEmbedding": native_embedding,
    "torch.nn.Module": dense_linear,
    "hqq.core.quantize.HQQLinear": hqq_linear,
    **bitsandbytes.BACKEND_SAMPLES,
    **peft.BACKEND_SAMPLES,
}
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {
    "gguf": gguf_file,
    "dense": dense_folder,
    **peft.FORMAT_SAMPLES,
    **bitsandbytes.FORMAT_SAMPLES,
}
