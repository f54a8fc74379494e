"""Checkpoints that bitsandbytes itself wrote: trained, exported, and read by bitsandbytes again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.folder.llama import write_llama
from tests.checkpoint.folder.round_trip import check_round_trip

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

CONFIGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nf4-nested": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "nf4-stored-as-bf16": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "bfloat16"},
    "int8": {"load_in_8bit": True},
    "int8-skip": {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "o_proj"]},
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""bitsandbytes rounds a 4-bit weight to the dtype that it was quantized from; zoquant's own layers do not."""
EIGHT_BIT_TOLERANCE = 2e-2
"""LLM.int8() rounds activations to 8 bits and computes in float16; zoquant's own layers do neither."""


def reload(path: Path) -> Any:
    """Load a folder with transformers and bitsandbytes alone, in training mode, which packs nothing anew."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, device_map={"": "cpu"}).train()


def quantize(folder: Path, options: dict[str, Any], dtype: torch.dtype) -> Path:
    """Let transformers and bitsandbytes quantize a llama and save it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = write_llama(folder / "plain", lambda path, weight: {f"{path}.weight": weight.to(dtype)}, None, dtype=dtype)
    config = BitsAndBytesConfig(**options)
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, dtype=dtype, device_map={"": "cpu"})
    model.save_pretrained(folder / "quantized")
    return folder / "quantized"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    tolerance = EIGHT_BIT_TOLERANCE if "int8" in name else TOLERANCE[dtype]
    check_round_trip(quantize(tmp_path, CONFIGS[name], dtype), tmp_path, tolerance=tolerance, reload=reload)
