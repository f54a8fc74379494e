"""Metal: every width against a reference, transformers' own dequantizer, configs that lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.backends.metal.samples import stored, write
from tests.checkpoint.folder.llama import edit_config, edit_tensors
from zoquant.backends.metal.format import MetalFormat
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError

FORMAT = MetalFormat()
Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights(tmp_path: Path, bits: int, size: int, dtype: torch.dtype) -> None:
    metal = pytest.importorskip("transformers.integrations.metal_quantization")
    folder = open_folder(write(tmp_path / "m", bits, size, dtype))
    layers = FORMAT.layers(folder)
    assert len(layers) == 7
    for path, layer in layers.items():
        tensors, expected = stored(layer.rows, layer.columns, bits, size, seed=len(path), dtype=dtype)
        packed = layer.packed(folder)
        np.testing.assert_allclose(packed.dequantize().double().numpy(), expected, rtol=1e-5, atol=1e-8)
        words, scales, offsets = tensors.values()
        theirs = metal._affine_dequantize_tensor(words, scales, offsets, size, bits)
        torch.testing.assert_close(packed.dequantize(), theirs, rtol=1e-5, atol=1e-8)
        assert [field.name for field in packed.fields] == ["scales", "qbiases"]
        assert torch.equal(packed.value("qbiases"), offsets)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"bits": 3}, "'bits': expected 2, 4 or 8"),
        ({"bits": "4"}, "'bits': expected a positive integer"),
        ({"group_size": 0}, "'group_size': expected a positive integer"),
        ({"group_size": 48}, "groups of 48"),
        ({"group_size": 64}, "scales': expected [64, 2]"),
        ({"bits": 8}, "scales': expected [64, 2]"),
    ],
)
def test_configs_that_lie(tmp_path: Path, said: dict[str, Any], text: str) -> None:
    path = edit_config(write(tmp_path / "m"), lambda config: config["quantization_config"].update(said))
    with pytest.raises(CheckpointError) as caught:
        FORMAT.index(path)
    assert text in str(caught.value)


@pytest.mark.parametrize("name", ["weight", "scales"])
def test_tensors_that_are_missing(tmp_path: Path, name: str) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{Q}.{name}"]

    path = edit_tensors(write(tmp_path / "m"), drop)
    with pytest.raises(CheckpointError, match=rf"q_proj\.{name}': expected a tensor of this name"):
        FORMAT.index(path)
