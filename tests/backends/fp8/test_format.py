"""Float8 and FP4 folders: every layout against a reference in numpy, transformers' own numbers, configs that lie."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import zoquant
from tests.backends.fp8.samples import FINE, KINDS, write
from tests.checkpoint.folder.llama import edit_config, logits
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix, open_folder
from zoquant.errors import CheckpointError, UnsupportedLayoutError
from zoquant.registry import format_of

POWERS = ("blocks-ue8m0", "mxfp8", "mxfp8-in-fp8", "fp4-experts")


def folder_of(path: Path, said: Any, tensors: dict[str, torch.Tensor]) -> Folder:
    """Write the tensors of one module, without a model around it."""
    path.mkdir(exist_ok=True)
    save_file({f"m.q.{name}": tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"quantization_config": said}))
    return open_folder(path)


def layer_of(folder: Folder) -> StoredMatrix:
    form = format_of(folder.path)
    assert isinstance(form, FolderFormat)
    return form.layers(folder)["m.q"]


@pytest.mark.parametrize("shape", [(48, 96), (40, 160), (129, 288)], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_weights(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    said, make = KINDS[name]
    tensors, expected = make(*shape, sum(shape))
    folder = folder_of(tmp_path, dict(said), tensors)
    layer = layer_of(folder)
    packed = layer.packed(folder)
    assert (layer.rows, layer.columns) == (packed.rows, packed.columns) == shape
    weight = packed.dequantize()
    np.testing.assert_allclose(weight.double().numpy(), expected, rtol=3e-7)
    rows = torch.tensor([shape[0] - 1, 0, 7])
    assert torch.equal(packed.decode_rows(rows), weight[rows])
    assert set(layer.tensors) == {f"m.q.{each}" for each in tensors}
    assert bool(layer.note) == (name in POWERS)
    expected_fields = [] if name in POWERS else ["weight_scale_2"] if name == "nvfp4" else [[*tensors][1]]
    assert list(layer.fields) == expected_fields == [field.name for field in packed.fields]
    for field in packed.fields:
        assert torch.equal(packed.value(field.name), tensors[field.name])


@pytest.mark.parametrize("name", ["blocks", "blocks-bf16", "mxfp8", "whole"])
def test_transformers_reads_the_same(tmp_path: Path, name: str) -> None:
    """On a CPU transformers dequantizes when it loads: the logits agree to 1e-5."""
    import transformers

    pytest.importorskip("accelerate")
    if int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("transformers 4 cannot dequantize these folders")
    path = write(tmp_path / "m", name)
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)


def test_scales_of_activations_belong_to_their_layers(tmp_path: Path) -> None:
    tensors, _ = KINDS["blocks"][1](48, 96, 0)
    layer = layer_of(folder_of(tmp_path, dict(FINE), {**tensors, "activation_scale": torch.ones(())}))
    assert "m.q.activation_scale" in layer.tensors


@pytest.mark.parametrize("place", ["", "{}_proj."], ids=["attention", "projection"])
def test_scales_of_a_cache_are_left_alone(tmp_path: Path, place: str) -> None:
    path = write(tmp_path / "m", "blocks")
    expected = logits(zoquant.load(path, compute_dtype=torch.float32)[0])
    names = [f"model.layers.0.self_attn.{place.format(kind)}{kind}_scale" for kind in "kv"]
    tensors = load_file(path / "model.safetensors")
    save_file({**tensors, **{name: torch.tensor(0.5) for name in names}}, path / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits(zoquant.load(path, compute_dtype=torch.float32)[0]), expected)
    assert not {*names} & {*format_of(path).index(path)}


def test_model_optimizer_says_who_it_is_in_two_ways(tmp_path: Path) -> None:
    for said in ({"quant_method": "modelopt"}, {"producer": {"name": "modelopt"}}):
        folder = folder_of(tmp_path, said, KINDS["nvfp4"][1](16, 32, 0)[0])
        assert layer_of(folder).type == "float4 g16"


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("blocks", {"weight_scale_inv": None}, "'m.q.weight_scale_inv': expected a tensor of this name"),
        ("blocks", {"weight_scale_inv": torch.ones(3, 4)}, "'m.q.weight_scale_inv': expected [3, 3] of float32"),
        ("blocks", {"weight_scale_inv": torch.ones(3, 3).double()}, "got [3, 3] of float64"),
        ("blocks", {"weight": torch.ones(0, 96).to(torch.float8_e4m3fn)}, "a matrix of float8_e4m3fn"),
        ("fp4-experts", {"scale": torch.ones(48, 3)}, "'m.q.scale': expected [48, 3] of uint8"),
        ("rows", {"weight_scale": torch.ones(2, 48)}, "'m.q.weight_scale': expected [48, 1]"),
        ("nvfp4", {"weight_scale_2": None}, "'m.q.weight_scale_2': expected a tensor of this name"),
        ("nvfp4", {"weight_scale_2": torch.ones(2)}, "'m.q.weight_scale_2': expected [1, 1]"),
        ("nvfp4", {"weight_scale": torch.ones(48, 6)}, "'m.q.weight_scale': expected [48, 6] of float8_e4m3fn"),
        ("modelopt-fp8", {"weight_scale": torch.ones(7)}, "'m.q.weight_scale': expected [1, 1]"),
    ],
)
def test_tensors_that_contradict(tmp_path: Path, kind: str, change: dict[str, Any], named: str) -> None:
    said, make = KINDS[kind]
    tensors = {name: tensor for name, tensor in {**make(48, 96, 0)[0], **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError) as caught:
        layer_of(folder_of(tmp_path, dict(said), tensors))
    assert named in str(caught.value)


@pytest.mark.parametrize("said", [[16], "16x32", [0, 32], [16, 32.0], [True, 32], {}])
def test_blocks_that_lie(tmp_path: Path, said: Any) -> None:
    folder = folder_of(tmp_path, {**FINE, "weight_block_size": said}, KINDS["blocks"][1](48, 96, 0)[0])
    with pytest.raises(CheckpointError, match="'weight_block_size': expected two positive integers"):
        layer_of(folder)


@pytest.mark.parametrize(("kind", "dtype"), [("blocks", torch.float8_e4m3fn), ("nvfp4", torch.uint8)])
def test_experts_in_one_tensor_are_refused_by_name(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    said, make = KINDS[kind]
    folder = folder_of(tmp_path, dict(said), {**make(48, 96, 0)[0], "experts": torch.zeros(2, 3, 4).to(dtype)})
    with pytest.raises(UnsupportedLayoutError, match=r"'m\.q\.experts': \[2, 3, 4\] of .*all experts of a layer"):
        layer_of(folder)


@pytest.mark.parametrize("kind", ["blocks", "rows", "nvfp4"])
def test_no_vendor_runtime(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "m", kind)
    with pytest.raises(UnsupportedLayoutError, match="on a GPU alone"):
        zoquant.load(path, runtime="vendor")


def described_elsewhere(path: Path, **quantization: Any) -> Path:
    """Move what config.json says of the quantization to the file that Model Optimizer writes."""
    edit_config(path, lambda config: config.pop("quantization_config"))
    said = {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": quantization}
    (path / "hf_quant_config.json").write_text(json.dumps(said))
    return path


@pytest.mark.parametrize(("kind", "algorithm"), [("modelopt-fp8", "FP8"), ("nvfp4", "NVFP4")])
def test_model_optimizer_describes_it_in_a_file_of_its_own(tmp_path: Path, kind: str, algorithm: str) -> None:
    path = write(tmp_path / "m", kind)
    expected = logits(zoquant.load(path, compute_dtype=torch.float32)[0])
    described_elsewhere(path, quant_algo=algorithm, kv_cache_quant_algo="FP8", exclude_modules=["lm_head"])
    assert format_of(path).name == "modelopt"
    assert torch.equal(logits(zoquant.load(path, compute_dtype=torch.float32)[0]), expected)


@pytest.mark.parametrize(
    "said",
    [
        {"quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": False, "pre_quant_scale": True},
        {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {"quant_algo": "W4A16_AWQ"}}},
        {"quant_algo": 7},
    ],
)
def test_other_algorithms_of_model_optimizer_are_refused_by_name(tmp_path: Path, said: dict[str, Any]) -> None:
    path = described_elsewhere(write(tmp_path / "m", "nvfp4"), **said)
    with pytest.raises(UnsupportedLayoutError, match=r"'quant_algo': expected one of FP8, .* got ('W4A16_AWQ'|7)\."):
        zoquant.load(path)


def test_scales_of_inputs_are_refused(tmp_path: Path) -> None:
    tensors = {**KINDS["nvfp4"][1](16, 32, 0)[0], "pre_quant_scale": torch.ones(32)}
    folder = folder_of(tmp_path, {"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}, tensors)
    with pytest.raises(
        UnsupportedLayoutError, match=r"'m\.q\.pre_quant_scale': 'quant_algo' 'NVFP4_AWQ' scales the inp"
    ):
        layer_of(folder)
