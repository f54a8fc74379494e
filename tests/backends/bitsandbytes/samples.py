"""Small bitsandbytes layers and checkpoints, the same bytes every time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.backends.bitsandbytes.reference import random_eight_bit, random_four_bit
from tests.checkpoint.folder.llama import write_llama

FOUR_BIT = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"}
EIGHT_BIT = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True, "llm_int8_threshold": 6.0}
KINDS: dict[str, dict[str, Any]] = {
    "q_proj": {"quant_type": "fp4"},
    "k_proj": {"nested": True},
    "v_proj": {"quant_type": "fp4", "nested": True, "blocksize": 32},
    "o_proj": {"blocksize": 4096},
    "gate_proj": {"blocksize": 128},
    "up_proj": {"storage": torch.bfloat16},
}
"""What is special about some layers of the 4-bit sample; all others are plain NF4 in blocks of 64."""


def four_bit_folder(folder: Path, **changes: Any) -> Path:
    """Write a llama of one layer in 4 bits, nearly every matrix of another kind."""

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        return random_four_bit(path, *weight.shape, **KINDS.get(path.rpartition(".")[2], {}), seed=len(path))

    return write_llama(folder / "bnb4", quantize, FOUR_BIT, **changes)


def eight_bit_folder(folder: Path, **changes: Any) -> Path:
    """Write a llama of one layer in LLM.int8()."""
    return write_llama(folder / "bnb8", lambda path, w: random_eight_bit(path, *w.shape), EIGHT_BIT, **changes)


def quantized(layer: Any, seed: int = 0) -> nn.Module:
    """Fill a layer with random weights and let bitsandbytes quantize them, as moving it to its device does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    module: nn.Module = layer.to("cpu").eval()
    return module


def linear4bit(
    quant_type: str = "nf4", *, nested: bool = False, columns: int = 128, rows: int = 96, bias: bool = True,
    compute_dtype: torch.dtype | None = torch.float32, blocksize: int = 64, cls: str = "Linear4bit",
    fast_cpu: bool = False,
) -> nn.Module:  # fmt: skip
    """Return a quantized layer in eval mode. `fast_cpu` leaves the kernel on that packs the words anew."""
    import bitsandbytes as bnb

    options = {"quant_type": quant_type} if cls == "Linear4bit" else {}
    layer = getattr(bnb.nn, cls)(
        columns, rows, bias=bias, compute_dtype=compute_dtype, compress_statistics=nested, **options
    )
    layer.weight.blocksize = blocksize
    layer.support_avx512bf16_for_cpu = fast_cpu
    return quantized(layer)


def linear8bit(threshold: float = 0.0, *, bias: bool = True) -> nn.Module:
    import bitsandbytes as bnb

    return quantized(bnb.nn.Linear8bitLt(128, 96, bias=bias, has_fp16_weights=False, threshold=threshold).half())


def embedding(cls: str) -> nn.Module:
    import bitsandbytes as bnb

    return quantized(getattr(bnb.nn, cls)(96, 128))


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {
    "bitsandbytes.nn.modules.Linear4bit": linear4bit,
    "bitsandbytes.nn.modules.LinearNF4": lambda: linear4bit(cls="LinearNF4", nested=True),
    "bitsandbytes.nn.modules.LinearFP4": lambda: linear4bit(cls="LinearFP4"),
    "bitsandbytes.nn.modules.Embedding4bit": lambda: embedding("Embedding4bit"),
    "bitsandbytes.nn.modules.EmbeddingNF4": lambda: embedding("EmbeddingNF4"),
    "bitsandbytes.nn.modules.EmbeddingFP4": lambda: embedding("EmbeddingFP4"),
    "bitsandbytes.nn.modules.Linear8bitLt": linear8bit,
    "bitsandbytes.nn.modules.Embedding8bit": lambda: embedding("Embedding8bit"),
}
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"bitsandbytes": four_bit_folder}
