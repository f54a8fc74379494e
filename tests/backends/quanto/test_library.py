"""Checkpoints that quanto itself wrote: trained, exported, and read by quanto again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.folder.llama import write_llama
from tests.checkpoint.folder.round_trip import check_round_trip

pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")


def reload(path: Path) -> Any:
    """Load a folder with quanto alone."""
    from optimum.quanto import QuantizedModelForCausalLM

    return QuantizedModelForCausalLM.from_pretrained(path)._wrapped.eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qint8", "qfloat8", "qint4", "qint2"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    from optimum.quanto import QuantizedModelForCausalLM
    from transformers import AutoModelForCausalLM

    plain = write_llama(
        tmp_path / "plain", lambda at, weight: {f"{at}.weight": weight}, None, hidden_size=256, intermediate_size=160
    )
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    path = tmp_path / "quantized"
    QuantizedModelForCausalLM.quantize(model, weights=kind, exclude="lm_head").save_pretrained(path)
    check_round_trip(path, tmp_path, tolerance=1e-5, reload=reload)
