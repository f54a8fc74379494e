"""GPTQ checkpoints: every width, group, order and kind of zeros against the reference; configs that lie."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoquant
from tests.backends.gptq.reference import dequantize, pack, random_gptq
from tests.backends.gptq.samples import CONFIG, KINDS, gptq_folder
from tests.checkpoint.folder.llama import edit_config, edit_tensors, logits, write_llama, write_tensors
from zoquant.backends.gptq.format import GPTQFormat
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError
from zoquant.registry import format_of

PATH = "model.layer"


def one_layer(folder: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq", **changes}
    return write_tensors(folder, tensors, config)


def weight_of(path: Path) -> Tensor:
    folder = open_folder(path)
    (layer,) = GPTQFormat().layers(folder).values()
    return layer.packed(folder).dequantize()


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([-1, 16, 32, 64, 128]),
    columns=st.sampled_from([32, 64, 96, 192]),
    rows=st.sampled_from([32, 64, 160]),
    act_order=st.booleans(),
    sym=st.booleans(),
    minus_one=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_native_weight_is_the_reference(
    tmp_path_factory: pytest.TempPathFactory, bits: int, group_size: int, columns: int, rows: int, act_order: bool,
    sym: bool, minus_one: bool, dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    kind: Any = {"bits": bits, "group_size": group_size, "minus_one": minus_one}
    tensors = random_gptq(PATH, rows, columns, act_order=act_order, sym=sym, dtype=dtype, seed=seed, **kind)
    form = "gptq" if minus_one else "gptq_v2"
    path = one_layer(tmp_path_factory.mktemp("gptq"), tensors, bits=bits, group_size=group_size, checkpoint_format=form)
    expected = dequantize(tensors, PATH, columns=columns, **kind)
    np.testing.assert_allclose(weight_of(path).double().numpy(), expected, rtol=1e-6, atol=0)
    folder = open_folder(path)
    packed = GPTQFormat().layers(folder)[PATH].packed(folder)
    whole, some = packed.dequantize(), torch.tensor([rows - 1, 0, 5, 5])
    assert torch.equal(packed.decode_rows(some), whole[some])
    assert torch.equal(packed.decode_rows(slice(3, 21)), whole[3:21])


def test_without_g_idx_and_with_a_last_group_cut_short(tmp_path: Path) -> None:
    tensors = random_gptq(PATH, 32, 96, group_size=64, g_idx=False)
    expected = dequantize(tensors, PATH, bits=4, columns=96, group_size=64, minus_one=True)
    got = weight_of(one_layer(tmp_path, tensors, group_size=64))
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zeros_of_zero_borrow_as_gptqmodel_writes_them(tmp_path: Path, bits: int) -> None:
    tensors = random_gptq(PATH, 32, 64, bits=bits, minus_one=False)
    zeros = np.random.default_rng(5).integers(0, 2, (2, 32))
    tensors[f"{PATH}.qzeros"] = torch.from_numpy(pack(zeros, bits))
    second = weight_of(one_layer(tmp_path / "v2", tensors, bits=bits, checkpoint_format="gptq_v2"))
    ones = torch.from_numpy(pack(np.ones((2, 32), np.int64), bits))
    tensors[f"{PATH}.qzeros"] = tensors[f"{PATH}.qzeros"] - ones
    first = weight_of(one_layer(tmp_path / "v1", tensors, bits=bits))
    assert torch.equal(first, second)


def test_every_layer_takes_its_own_scheme(tmp_path: Path) -> None:
    folder = open_folder(gptq_folder(tmp_path))
    layers = GPTQFormat().layers(folder)
    assert len(layers) == 7
    tensors = {name: folder.read(name) for name in folder.tensors}
    for path, layer in layers.items():
        kind = {"bits": 4, "group_size": 32, **KINDS.get(path.rpartition(".")[2], {})}
        expected = dequantize(
            tensors, path, bits=kind["bits"], columns=layer.columns, group_size=kind["group_size"], minus_one=True
        )
        np.testing.assert_allclose(layer.packed(folder).dequantize().double().numpy(), expected, rtol=1e-6)


def test_model_computes_with_the_reference_weights(tmp_path: Path) -> None:
    path = gptq_folder(tmp_path)
    folder = open_folder(path)
    native, _ = zoquant.load(path, compute_dtype=torch.float32)
    tensors = {name: folder.read(name) for name in folder.tensors}

    def reference(name: str, weight: Tensor) -> dict[str, Tensor]:
        kind = {"bits": 4, "group_size": 32, **KINDS.get(name.rpartition(".")[2], {})}
        found = dequantize(
            tensors, name, bits=kind["bits"], columns=weight.shape[1], group_size=kind["group_size"], minus_one=True
        )
        return {f"{name}.weight": torch.from_numpy(found).float()}

    dense = transformers.LlamaForCausalLM.from_pretrained(write_llama(tmp_path / "dense", reference, None))
    torch.testing.assert_close(logits(native), logits(dense), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unknown", [(), ("quant_method", "static_groups")], ids=["0.7", "0.4"])
def test_old_autogptq_file_names_and_configs(tmp_path: Path, unknown: tuple[str, ...]) -> None:
    path = gptq_folder(tmp_path)
    expected = logits(zoquant.load(path)[0])
    (path / "model.safetensors").rename(path / "gptq_model-4bit-128g.safetensors")
    said = {**CONFIG, "is_marlin_format": False, "damp_percent": 0.01, "static_groups": False, "true_sequential": True}
    said.update(model_name_or_path=None, model_file_base_name="gptq_model-4bit-128g")
    for key in ("checkpoint_format", *unknown):
        del said[key]
    edit_config(path, lambda config: config.pop("quantization_config"))
    (path / "quantize_config.json").write_text(json.dumps(said), encoding="utf-8")
    assert format_of(path).name == "gptq"
    assert torch.equal(logits(zoquant.load(path)[0]), expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bits", 8), ("bits", 5), ("bits", "4"), ("bits", True), ("group_size", 64), ("group_size", 0),
        ("group_size", None), ("checkpoint_format", "marlin"), ("checkpoint_format", "bitblas"),
        ("is_marlin_format", True), ("checkpoint_format", 7),
        ("checkpoint_format", ["gptq"]),
    ],
)  # fmt: skip
def test_lying_configs_are_refused(tmp_path: Path, key: str, value: object) -> None:
    path = one_layer(tmp_path, random_gptq(PATH, 32, 64), **{key: value})
    with pytest.raises(CheckpointError, match=r"expected .* got"):
        GPTQFormat().index(path)


@pytest.mark.parametrize("name", ["qweight", "qzeros", "scales", "g_idx"])
@pytest.mark.parametrize("how", ["shape", "dtype", "scalar", "empty"])
def test_wrong_tensors_are_refused(tmp_path: Path, name: str, how: str) -> None:
    path = one_layer(tmp_path, random_gptq(PATH, 32, 64))
    full = f"{PATH}.{name}"

    def change(tensors: dict[str, Tensor]) -> None:
        old = tensors[full]
        tensors[full] = {
            "shape": torch.cat([old, old]), "dtype": old.long(), "scalar": old.reshape(-1)[0].clone(),
            "empty": old[:0].clone(),
        }[how]  # fmt: skip

    edit_tensors(path, change)
    with pytest.raises(CheckpointError, match=PATH):
        GPTQFormat().index(path)


@pytest.mark.parametrize("name", ["qzeros", "scales"])
def test_missing_tensors_are_named(tmp_path: Path, name: str) -> None:
    path = one_layer(tmp_path, random_gptq(PATH, 32, 64))
    edit_tensors(path, lambda tensors: tensors.__delitem__(f"{PATH}.{name}"))
    with pytest.raises(CheckpointError, match=f"{PATH}.{name}"):
        GPTQFormat().index(path)


@pytest.mark.parametrize("group", [-1, 2])
def test_groups_that_are_not_there_are_refused(tmp_path: Path, group: int) -> None:
    path = one_layer(tmp_path, random_gptq(PATH, 32, 64))
    edit_tensors(path, lambda tensors: tensors.update({f"{PATH}.g_idx": torch.full((64,), group, dtype=torch.int32)}))
    with pytest.raises(CheckpointError, match="g_idx"):
        weight_of(path)


def test_planar_three_bits_are_refused(tmp_path: Path) -> None:
    path = one_layer(tmp_path, random_gptq(PATH, 32, 64, bits=3), bits=3, checkpoint_format="gptq_p")
    with pytest.raises(CheckpointError, match="planar"):
        GPTQFormat().index(path)


def test_no_quantized_layer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="qweight"):
        GPTQFormat().index(one_layer(tmp_path, {"weight": torch.zeros(2, 2)}))
