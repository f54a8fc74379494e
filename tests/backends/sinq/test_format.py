"""SINQ: every width and layout against a reference, and files that lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.backends.sinq.reference import NAMES
from tests.backends.sinq.samples import edit_meta, stored, write
from tests.checkpoint.folder.llama import edit_config
from zoquant.backends.sinq.format import SINQFormat
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError, UnsupportedLayoutError

FORMAT = SINQFormat()
Q = "model.layers.0.self_attn.q_proj"
PLAIN = ["meta.scale", "meta.zero", "meta.scale2"]
AUX = ["meta.scale.s", "meta.scale.m", "meta.zero.s", "meta.zero.m", "meta.scale2"]


@pytest.mark.parametrize("aux", [False, True])
@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("bits", NAMES)
def test_weights(tmp_path: Path, bits: int, tiles: bool, aux: bool) -> None:
    folder = open_folder(write(tmp_path / "s", bits, tiles=tiles, aux=aux))
    layers = FORMAT.layers(folder)
    assert len(layers) == 7
    for path, layer in layers.items():
        tensors, _, expected = stored(layer.rows, layer.columns, bits, 32, seed=len(path), tiles=tiles, aux=aux)
        packed = layer.packed(folder)
        np.testing.assert_allclose(packed.dequantize().double().numpy(), expected, rtol=1e-4, atol=1e-6)
        some = torch.tensor([layer.rows - 1, 3, 3, 0])
        np.testing.assert_allclose(packed.decode_rows(some).double().numpy(), expected[some], rtol=1e-4, atol=1e-6)
        assert [field.name for field in packed.fields] == list(layer.fields) == (AUX if aux else PLAIN)
        assert [field.role for field in packed.fields] == [role for role, _ in layer.fields.values()]
        assert all(torch.equal(packed.value(name), tensors[name]) for name in layer.fields)


@pytest.mark.parametrize("said", [{"quantization_method": "sinq", "backend": "sinq", "sinq": True}])
def test_configs_of_sinq_itself_are_claimed(tmp_path: Path, said: dict[str, Any]) -> None:
    path = write(tmp_path / "s")
    edit_config(path, lambda config: config.update(quantization_config=said))
    assert FORMAT.sniff(path)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"packing": "4bit_32"}, "'packing'\": expected one of 8bit_u8"),
        ({"packing": ["4bit_u8"]}, "'packing'\": expected one of 8bit_u8"),
        ({"packing": "8bit_u8"}, "W_q': expected words for 1 of the groups"),
        ({"packing": "3bit_32"}, "W_q': expected words for 10 of the groups"),
        ({"shape": [64, 128]}, "W_q': expected words for 2 of the groups"),
        ({"shape": [32, 128]}, "scale2': expected [1, 128]"),
        ({"shape": [64.0, 64]}, "'shape'\": expected two positive integers"),
        ({"shape": None}, "'shape'\": expected two positive integers"),
    ],
)
def test_files_that_lie(tmp_path: Path, said: dict[str, Any], text: str) -> None:
    path = edit_meta(write(tmp_path / "s"), lambda all_: all_[Q]["meta"].update(said))
    with pytest.raises(CheckpointError) as caught:
        FORMAT.index(path)
    assert text in str(caught.value)


@pytest.mark.parametrize("said", [{"method": "sinq_nf4"}, {"method": "sinq_noz"}, {"view_as_float": True}])
def test_layouts_that_are_refused(tmp_path: Path, said: dict[str, Any]) -> None:
    path = edit_meta(write(tmp_path / "s"), lambda all_: all_[Q]["meta"].update(said))
    with pytest.raises(UnsupportedLayoutError, match="is not a uniform grid"):
        FORMAT.index(path)


def test_a_layer_that_is_not_described(tmp_path: Path) -> None:
    path = edit_meta(write(tmp_path / "s"), lambda all_: all_.pop(Q))
    with pytest.raises(CheckpointError, match="expected an object 'meta'"):
        FORMAT.index(path)


def test_the_vendor_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayoutError, match="load the model with sinq and attach"):
        FORMAT.open_vendor(tmp_path, compute_dtype=torch.float32, device=torch.device("cpu"))
