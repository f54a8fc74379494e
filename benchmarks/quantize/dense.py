"""Write what a GGUF file holds as a dense bfloat16 folder: `python -m benchmarks.quantize.dense <file.gguf> <out>`."""

import copy
import sys
from pathlib import Path

import torch

from benchmarks.quantize.source import load_dense


def dequantize(source: Path, out: Path) -> None:
    """Write the folder and the tokenizer."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_dense(source)
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    dequantize(Path(sys.argv[1]), Path(sys.argv[2]))
