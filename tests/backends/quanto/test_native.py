"""The native layers against float64 dequantizers, and what a folder of quanto is refused for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import zoquant
from tests.backends.quanto import reference
from tests.backends.quanto.samples import KINDS, quanto_folder
from tests.checkpoint.folder.llama import edit_config, edit_tensors, logits, write_llama
from zoquant.backends.quanto.format import QuantoFormat
from zoquant.backends.quanto.layout import eight_bit, few_bit
from zoquant.errors import CheckpointError

FORMAT = QuantoFormat()
INT8 = "model.layers.0.mlp.up_proj"
INT4 = "model.layers.0.mlp.down_proj"


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["qint8", "qfloat8", "qfloat8_e5m2", "qint4", "qint2"]),
    rows=st.integers(1, 40),
    groups=st.integers(1, 4),
    size=st.integers(1, 20),
    shift=st.sampled_from([None, torch.int8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_against_the_reference(
    kind: str, rows: int, groups: int, size: int, shift: Any, dtype: torch.dtype, seed: int
) -> None:
    columns = groups * size
    tensors = reference.random_layer("a", rows, columns, kind, size=size, shift=shift, dtype=dtype, seed=seed)
    expected = torch.from_numpy(reference.dequantize(tensors, "a", kind, columns))
    part = {name.removeprefix("a."): value for name, value in tensors.items()}
    if kind in reference.CODES:
        packed = eight_bit(part["weight._data"].dtype).weight(part)
    else:
        layout = few_bit(reference.BITS[kind], part["weight._data._data"].shape[1], part["weight._shift"].dtype)
        packed = layout.weight(part, (rows, columns))
    torch.testing.assert_close(packed.dequantize().double(), expected, rtol=1e-6, atol=1e-6)
    some = torch.tensor([rows - 1, 0])
    torch.testing.assert_close(packed.decode_rows(some).double(), expected[some], rtol=1e-6, atol=1e-6)


def test_the_model_is_the_dequantized_one(tmp_path: Path) -> None:
    path = quanto_folder(tmp_path)
    tensors = load_file(path / "model.safetensors")

    def dense(module: str, weight: Tensor) -> dict[str, Tensor]:
        kind = KINDS.get(module.rpartition(".")[2], ("qint8", {}))[0]
        read = reference.dequantize(tensors, module, kind, weight.shape[1])
        return {f"{module}.weight": torch.from_numpy(read).float()}

    plain = write_llama(tmp_path / "plain", dense, None)
    got, _ = zoquant.load(path, runtime="native", compute_dtype=torch.float32)
    expected, _ = zoquant.load(plain, runtime="native", compute_dtype=torch.float32)
    torch.testing.assert_close(logits(got), logits(expected), rtol=1e-4, atol=1e-4)


def test_views(tmp_path: Path) -> None:
    model, _ = zoquant.load(quanto_folder(tmp_path), runtime="native")
    views = zoquant.attach(model)
    assert {view.name.rpartition("layers.0.")[2]: view.shape for view in views} == {
        "self_attn.q_proj.weight._scale": (64, 1),
        "self_attn.k_proj.weight._scale": (64, 1),
        "self_attn.k_proj.weight._shift": (64, 1),
        "self_attn.v_proj.weight._scale": (64, 1),
        "self_attn.o_proj.weight._scale": (64, 1),
        "self_attn.o_proj.weight._shift": (64, 1),
        "mlp.gate_proj.weight._scale": (256, 1),
        "mlp.gate_proj.weight._shift": (256, 1),
        "mlp.up_proj.weight._scale": (128, 1),
        "mlp.down_proj.weight._scale": (64, 1),
        "mlp.down_proj.weight._shift": (64, 1),
    }
    coupled = ["model.layers.0.mlp.down_proj.weight._scale", "model.layers.0.mlp.down_proj.weight._shift"]
    assert tuple(coupled) in views.coupled_keys()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (f"{INT8}.weight._data", None, "expected a tensor of this name, got none"),
        (f"{INT8}.weight._data", torch.zeros(8, dtype=torch.int8), "expected a matrix of int8, got [8] of int8"),
        (f"{INT8}.weight._data", torch.zeros(128, 64), "expected a matrix of int8, got [128, 64] of float32"),
        (
            f"{INT8}.weight._scale",
            torch.ones(64, 1),
            "expected [128, 1] of float32 or float16 or bfloat16, one for each 1 x 64 weights, got [64, 1]",
        ),
        (f"{INT4}.weight._scale", torch.ones(63, 1), "expected [64, 1] of float32"),
        (f"{INT4}.weight._shift", None, "expected a tensor of this name, got none"),
        (f"{INT4}.weight._shift", torch.ones(64, 1).int(), "one for each 1 x 128 weights, got [64, 1] of int32"),
        (
            f"{INT4}.weight._data._data",
            torch.zeros(32, 100, dtype=torch.uint8),
            "expected codes of 4 bits in groups of",
        ),
        (
            f"{INT4}.weight._data._data",
            torch.zeros(31, 128, dtype=torch.uint8),
            "expected codes of 4 bits in groups of",
        ),
        (f"{INT4}.weight._data._data", torch.zeros(32, 128), "expected a matrix of uint8, got [32, 128] of float32"),
    ],
)
def test_tensors_that_lie(tmp_path: Path, name: str, value: Tensor | None, text: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[name]
        if value is not None:
            tensors[name] = value

    with pytest.raises(CheckpointError) as caught:
        FORMAT.index(edit_tensors(quanto_folder(tmp_path), change))
    assert text in str(caught.value)
    assert name.partition(".weight")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"weights": "qint3", "activations": "none"}, "weights': expected one of qint8, qfloat8"),
        ({"weights": None}, "weights': expected one of qint8, qfloat8"),
        ("qint8", "expected types of weights and activations, got 'qint8'"),
        (["qint8"], "expected types of weights and activations, got ['qint8']"),
        ({"weights": "qint8", "activations": "qint8"}, "activations': expected 'none': zoquant does not follow others"),
        ({"weights": "none", "activations": "none"}, "expected its layer in quanto_qmap.json, got none"),
        ({"weights": "qint2", "activations": "none"}, "expected a tensor of this name, got none"),
    ],
)
def test_maps_that_lie(tmp_path: Path, entry: Any, text: str) -> None:
    path = quanto_folder(tmp_path)
    qmap = json.loads((path / "quanto_qmap.json").read_text())
    (path / "quanto_qmap.json").write_text(json.dumps(qmap | {INT8: entry}))
    with pytest.raises(CheckpointError) as caught:
        FORMAT.index(path)
    assert text in str(caught.value)
    assert INT8 in str(caught.value)


def test_a_map_of_nothing(tmp_path: Path) -> None:
    path = quanto_folder(tmp_path)
    (path / "quanto_qmap.json").write_text("{}")
    with pytest.raises(CheckpointError, match="expected at least one layer with quantized weights, got none"):
        FORMAT.index(path)


def test_layers_that_the_model_has_not(tmp_path: Path) -> None:
    path = quanto_folder(tmp_path)
    qmap = json.loads((path / "quanto_qmap.json").read_text())
    for name, text in (("model.layers.9.x", "a layer of the model"), ("model.norm", "a Linear")):
        new = qmap | {name: {"weights": "qint4", "activations": "none"}}
        (path / "quanto_qmap.json").write_text(json.dumps(new))
        with pytest.raises(CheckpointError, match=f"{name}.*expected {text}"):
            FORMAT.index(path)


def test_a_config_of_other_sizes(tmp_path: Path) -> None:
    path = edit_config(quanto_folder(tmp_path), lambda config: config.update(intermediate_size=96))
    with pytest.raises(CheckpointError, match="expected codes of 2 bits in groups of"):
        FORMAT.index(path)


def test_inspect(tmp_path: Path) -> None:
    summary = FORMAT.summarize(quanto_folder(tmp_path))
    assert summary.layers == 7
    assert {name: count for name, count in summary.types.items() if name != "float32"} == {
        "qfloat8 rows": 1, "qint4 g32": 2, "qint2 g64": 1, "qint2 g32": 1, "qint8 rows": 1, "qint4 g128": 1,
    }  # fmt: skip
