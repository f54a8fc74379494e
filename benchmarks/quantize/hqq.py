"""Quantize a model with hqq, by its own defaults in 4 bits, on a CPU.

    python -m benchmarks.quantize.hqq <folder or GGUF file> <out>

Source: hqq 0.2.8.post1, README: `AutoHQQHFModel.quantize_model`, `save_quantized`.
"""

import sys
from pathlib import Path

import torch

from benchmarks.quantize.source import load_dense


def quantize(source: Path, out: Path, *, nbits: int = 4, group_size: int = 64) -> None:
    """Write hqq's own `qmodel.pt`, with float16 scales and zero points, and the tokenizer."""
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    model, tokenizer = load_dense(source)
    settings = BaseQuantizeConfig(nbits=nbits, group_size=group_size)
    AutoHQQHFModel.quantize_model(model, quant_config=settings, compute_dtype=torch.float16, device="cpu")
    AutoHQQHFModel.save_quantized(model, str(out))
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    quantize(Path(sys.argv[1]), Path(sys.argv[2]))
