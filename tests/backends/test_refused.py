"""Folders that nobody reads say why."""

from pathlib import Path

import pytest
import torch

import zoquant
from tests.folders import CONFIG, write_folder
from zoquant.backends.refused import WHY
from zoquant.errors import UnsupportedLayoutError
from zoquant.registry import all_formats


@pytest.mark.parametrize("method", [*WHY, "made-up"])
def test_the_reason_is_named(tmp_path: Path, method: str) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": method}}
    path = write_folder(tmp_path / "a", {"x": torch.ones(2)}, config=config)
    assert not [each.name for each in all_formats() if each.sniff(path)]
    why = WHY.get(method, "no format claims it")
    with pytest.raises(UnsupportedLayoutError) as caught:
        zoquant.load(path)
    assert f"quantized by the method {method!r}, which zoquant does not read: {why}." in str(caught.value)
    assert str(caught.value).endswith("Quantize the model in a format that `zoquant backends` lists.")
