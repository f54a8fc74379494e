"""Checkpoints that Quark itself wrote: trained, exported, and read by transformers and Quark again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.folder.llama import write_llama
from tests.checkpoint.folder.round_trip import check_round_trip

pytest.importorskip("onnx", reason="onnx, which Quark imports, is not installed")
pytest.importorskip("quark", reason="amd-quark is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

KINDS = (
    "uint4-per_group",
    "int4-per_group",
    "int4-per_channel",
    "int8-per_channel",
    "int8-per_tensor",
    "fp8_e4m3-per_tensor",
)


def reload(path: Path) -> Any:
    """Load a folder with transformers and Quark alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, device_map={"": "cpu"})


def quantize(folder: Path, kind: str) -> Path:
    """Let Quark quantize a llama and export it."""
    from quark.torch import ModelQuantizer, export_safetensors
    from quark.torch.quantization.config.config import QConfig, QLayerConfig, QTensorConfig
    from transformers import AutoModelForCausalLM

    from tests.backends.quark.samples import spec

    plain = write_llama(folder / "plain", lambda path, weight: {f"{path}.weight": weight}, None)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    weight = QTensorConfig.from_dict(spec(*kind.split("-"), symmetric=kind.startswith("int")))
    config = QConfig(global_quant_config=QLayerConfig(weight=weight), exclude=["lm_head"])
    quantizer = ModelQuantizer(config)
    model = quantizer.freeze(quantizer.quantize_model(model, [torch.arange(8)[None]]))
    with torch.no_grad():
        export_safetensors(model, str(folder / "quantized"))
    return folder / "quantized"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(tmp_path: Path, kind: str) -> None:
    check_round_trip(quantize(tmp_path, kind), tmp_path, tolerance=1e-5, reload=reload)
