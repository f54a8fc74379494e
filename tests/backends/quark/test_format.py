"""Quark: every layout against a reference, and checkpoints that lie or hold more than native layers compute."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoquant
from tests.backends.quark.samples import KINDS, ORDERED, write
from tests.checkpoint.folder.llama import edit_config, edit_tensors
from zoquant.backends.quark.format import QuarkFormat
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError, UnsupportedLayoutError

FORMAT = QuarkFormat()
Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("name", [*KINDS, *ORDERED])
def test_weights(tmp_path: Path, name: str) -> None:
    order = "order" if name in ORDERED else "reorder"
    _, make = {**KINDS, **ORDERED}[name]
    folder = open_folder(write(tmp_path / "q", name, order=order))
    layers = FORMAT.layers(folder)
    assert len(layers) == 7
    for seed, path in enumerate(_paths(folder)):
        layer = layers[path]
        tensors, expected = make(layer.rows, layer.columns, seed)
        packed = layer.packed(folder)
        np.testing.assert_allclose(packed.dequantize().double().numpy(), expected, rtol=1e-5, atol=1e-8)
        some = torch.tensor([layer.rows - 1, 3, 3, 0])
        np.testing.assert_allclose(packed.decode_rows(some).double().numpy(), expected[some], rtol=1e-5, atol=1e-8)
        trained = "weight_scale_2" if name == "nvfp4" else "weight_scale"
        assert list(layer.fields) == ([] if name.startswith("mx") else [trained])
        assert bool(layer.note) == name.startswith("mx")
        if layer.fields:
            assert torch.equal(packed.value(trained), tensors[trained])


def _paths(folder: Any) -> list[str]:
    return list(folder.quantization["layer_quant_config"])


def test_patterns_decide(tmp_path: Path) -> None:
    """A pattern of layer_quant_config, the entry of Linear, and the global one, in this order."""

    def change(config: dict[str, Any]) -> None:
        said = config["quantization_config"]
        entry = said["layer_quant_config"][Q]
        said["layer_quant_config"] = {"*q_proj": entry}
        said["layer_type_quant_config"] = {"Linear": entry}

    path = write(tmp_path / "q", "uint4-per_group")
    before = FORMAT.index(path)
    assert FORMAT.index(edit_config(path, change)) == before

    def more(config: dict[str, Any]) -> None:
        said = config["quantization_config"]
        said["global_quant_config"] = said["layer_type_quant_config"].pop("Linear")

    assert FORMAT.index(edit_config(path, more)) == before


def test_inspect_names_activations(tmp_path: Path) -> None:
    summary = FORMAT.summarize(write(tmp_path / "q", "uint4-per_group", "mxfp4"))
    assert any(note.startswith("activations: ") for note in summary.notes)
    assert any("powers of two" in note for note in summary.notes)
    assert summary.types["uint4 g32"] == 4


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"group_size": 16}, "weight_scale': expected [4, 64] of"),
        ({"group_size": 48}, "groups of 48"),
        ({"group_size": 0}, "'group_size'\": expected a positive integer or -1"),
        ({"qscheme": "per_row"}, "'qscheme'\": expected one of"),
        ({"qscheme": "per_channel", "ch_axis": 0}, "weight_scale': expected [64] of"),
        ({"dtype": "int8"}, "weight': expected a matrix of int8, got [64, 8] of int32"),
    ],
)
def test_configs_that_lie(tmp_path: Path, said: dict[str, Any], text: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["layer_quant_config"][Q]["weight"].update(said)

    with pytest.raises(CheckpointError) as caught:
        FORMAT.index(edit_config(write(tmp_path / "q", "uint4-per_group"), change))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"dtype": "int3"}, "has codes of 'int3'"),
        ({"dtype": ["int4"]}, "has codes of ['int4']"),
        ({"zero_point_type": "float32"}, "has zeros in floating point"),
        ({"ch_axis": 0}, "is quantized per_group along axis 0"),
        ({"qscheme": "per_block", "block_size": [8, 8]}, "has integers in blocks"),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, said: dict[str, Any], text: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["layer_quant_config"][Q]["weight"].update(said)

    with pytest.raises(UnsupportedLayoutError) as caught:
        FORMAT.index(edit_config(write(tmp_path / "q", "uint4-per_group"), change))
    assert text in str(caught.value)


@pytest.mark.parametrize("export", [{"pack_method": "other"}, 3])
def test_exports_that_lie(tmp_path: Path, export: Any) -> None:
    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["export"] = export

    with pytest.raises(CheckpointError):
        FORMAT.index(edit_config(write(tmp_path / "q", "uint4-per_group"), change))


def test_weights_in_floating_point_are_refused(tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["export"]["weight_format"] = "fake_quantized"

    with pytest.raises(UnsupportedLayoutError, match="quantized in every forward"):
        FORMAT.index(edit_config(write(tmp_path / "q", "uint4-per_group"), change))


@pytest.mark.parametrize("name", ["input_rotation", "input_prescale", "bias_scale"])
def test_layers_that_do_more_are_refused(tmp_path: Path, name: str) -> None:
    path = edit_tensors(write(tmp_path / "q", "fp8-row"), lambda all_: all_.update({f"{Q}.{name}": torch.ones(8)}))
    with pytest.raises(UnsupportedLayoutError, match=f"has a tensor {name}"):
        FORMAT.index(path)


@pytest.mark.parametrize("name", ["weight", "weight_zero_point"])
def test_tensors_that_are_missing(tmp_path: Path, name: str) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{Q}.{name}"]

    path = edit_tensors(write(tmp_path / "q", "uint4-per_group"), drop)
    with pytest.raises(CheckpointError, match=rf"q_proj\.{name}': expected a tensor of this name"):
        FORMAT.index(path)


def test_zeros_that_the_config_denies(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q}.weight_zero_point"].fill_(1)

    path = edit_tensors(write(tmp_path / "q", "int4-sym"), change)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight_zero_point': expected zeros of 0, as 'symmetric' says"):
        zoquant.load(path)


def test_static_scales_of_activations_are_left_out(tmp_path: Path) -> None:
    one = torch.tensor(1.0)
    path = write(tmp_path / "q", "fp8-tensor")
    edit_tensors(path, lambda all_: all_.update({f"{Q}.input_scale": one, f"{Q}.output_scale": one.clone()}))
    model, _ = zoquant.load(path, runtime="native")
    assert f"{Q}.weight_scale" in zoquant.attach(model).keys
    assert f"{Q}.input_scale" not in FORMAT.index(path)
