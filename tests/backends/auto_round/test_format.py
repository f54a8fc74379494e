"""AutoRound checkpoints: the packings that are GPTQ's and AWQ's, and those that are neither."""

from pathlib import Path

import numpy as np
import pytest

import zoquant
from tests.backends.auto_round.samples import auto_round_folder
from tests.backends.awq.reference import random_awq
from tests.backends.gptq.reference import dequantize
from tests.checkpoint.folder.llama import edit_config
from zoquant.backends.auto_round.format import AutoRoundFormat
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError


@pytest.mark.parametrize("packing", ["auto_round:auto_gptq", "auto_round", "auto_round:gptqmodel"])
def test_layers_of_gptq(tmp_path: Path, packing: str) -> None:
    folder = open_folder(auto_round_folder(tmp_path, packing=packing))
    tensors = {name: folder.read(name) for name in folder.tensors}
    minus_one = packing.endswith("auto_gptq")
    layers = AutoRoundFormat().layers(folder)
    assert len(layers) == 7
    for path, layer in layers.items():
        bits = 8 if path.endswith("down_proj") else 4
        expected = dequantize(tensors, path, bits=bits, columns=layer.columns, group_size=32, minus_one=minus_one)
        np.testing.assert_allclose(layer.packed(folder).dequantize().double().numpy(), expected, rtol=1e-6)


def test_layers_of_awq(tmp_path: Path) -> None:
    folder = open_folder(auto_round_folder(tmp_path, packing="auto_round:auto_awq"))
    for path, layer in AutoRoundFormat().layers(folder).items():
        expected = random_awq(path, layer.rows, layer.columns, seed=len(path))[1]
        np.testing.assert_allclose(layer.packed(folder).dequantize().double().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round"])
def test_both_names_are_claimed(tmp_path: Path, method: str) -> None:
    path = edit_config(
        auto_round_folder(tmp_path), lambda config: config["quantization_config"].update(quant_method=method)
    )
    model, _ = zoquant.load(path)
    assert len(zoquant.attach(model)) == 7


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("packing_format", "auto_round:fp8"), ("packing_format", 3),
        ("packing_format", ["auto_round"]), ("act_bits", 8), ("bits", 8),
        ("rotation_config", {"kind": "hadamard"}),
    ],
)  # fmt: skip
def test_other_packings_are_refused(tmp_path: Path, key: str, value: object) -> None:
    path = edit_config(auto_round_folder(tmp_path), lambda config: config["quantization_config"].update({key: value}))
    with pytest.raises(CheckpointError, match=r"expected .* got"):
        AutoRoundFormat().index(path)
