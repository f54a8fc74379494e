"""The dense model that a benchmark quantizes."""

from pathlib import Path
from typing import Any

import torch


def load_dense(source: Path) -> tuple[Any, Any]:
    """Return a causal model of transformers in float32 on the CPU, and its tokenizer.

    Args:
        source: a folder as transformers writes it, or a GGUF file, whose weights are dequantized.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: tuple[Path, dict[str, str]] = (source, {})
    if source.suffix == ".gguf":
        place = (source.parent, {"gguf_file": source.name})
    folder, options = place
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    model.hf_quantizer = None  # else transformers takes the model for a GGUF file that it cannot save
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder, **options)
