"""Checkpoints that torchao itself wrote: trained, exported, and read by torchao again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.folder.llama import write_llama
from tests.checkpoint.folder.round_trip import check_round_trip

pytest.importorskip("torchao", reason="torchao is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

INT4, INT2 = (getattr(torch, name, None) for name in ("int4", "int2"))

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""torchao computes in the dtype that its weights were made in, and zoquant's own layers in float32."""


def configs() -> dict[str, Any]:
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        MappingType,
        PerGroup,
    )

    return {
        "int8": Int8WeightOnlyConfig(version=2),
        "int8-groups": Int8WeightOnlyConfig(granularity=PerGroup(32), version=2),
        "float8": Float8WeightOnlyConfig(version=2),
        "int4": IntxWeightOnlyConfig(INT4, PerGroup(32), version=2),
        "int2": IntxWeightOnlyConfig(INT2, PerGroup(32), mapping_type=MappingType.ASYMMETRIC, version=2),
    }


def reload(path: Path) -> Any:
    """Load a folder with transformers and torchao alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map={"": "cpu"})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["int8", "int8-groups", "float8", "int4", "int2"])
def test_round_trip(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM, TorchAoConfig

    plain = write_llama(tmp_path / "plain", lambda at, weight: {f"{at}.weight": weight.to(dtype)}, None, dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=TorchAoConfig(configs()[name]), dtype=dtype, device_map={"": "cpu"}
    )
    model.save_pretrained(tmp_path / "quantized")
    check_round_trip(tmp_path / "quantized", tmp_path, tolerance=TOLERANCE[dtype], reload=reload)
