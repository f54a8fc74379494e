"""Quantize a dense folder to NF4 with bitsandbytes, on a CPU.

    python -m benchmarks.quantize.bitsandbytes <dense folder> <out>

Source: transformers 5.23, `BitsAndBytesConfig`. The model is saved before any forward, which would pack its words anew.
"""

import sys
from pathlib import Path

import torch


def quantize(source: Path, out: Path) -> None:
    """Write a checkpoint of NF4 in blocks of 64, and the tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        source, device_map={"": "cpu"}, dtype=torch.bfloat16, quantization_config=settings
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


if __name__ == "__main__":
    quantize(Path(sys.argv[1]), Path(sys.argv[2]))
