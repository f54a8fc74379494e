"""compressed-tensors: every layout against a reference in numpy, and configs that lie."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import zoquant
from tests.backends.compressed_tensors.samples import KINDS, Kind, config_of, stored, write
from tests.checkpoint.folder.llama import edit_config, edit_tensors, logits
from zoquant.backends.compressed_tensors.format import CompressedTensorsFormat
from zoquant.checkpoint.folder import Folder, StoredMatrix, open_folder
from zoquant.errors import CheckpointError, UnsupportedLayoutError, ZoquantError
from zoquant.registry import format_of

FORMAT = CompressedTensorsFormat()


def folder_of(path: Path, kind: Kind, tensors: dict[str, torch.Tensor]) -> Folder:
    """Write the tensors of one module, without a model around it."""
    path.mkdir(exist_ok=True, parents=True)
    save_file({f"m.q.{name}": tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text("{}")
    found = open_folder(path)
    return replace(found, quantization=config_of(kind))


def layer_of(path: Path, kind: Kind, tensors: dict[str, torch.Tensor]) -> tuple[StoredMatrix, Folder]:
    folder = folder_of(path, kind, tensors)
    return FORMAT.layers(folder)["m.q"], folder


@pytest.mark.parametrize("shape", [(40, 96), (33, 160), (1, 32)], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_weights(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    tensors, expected = stored(KINDS[name], *shape, seed=sum(shape))
    layer, folder = layer_of(tmp_path, KINDS[name], tensors)
    packed = layer.packed(folder)
    assert (layer.rows, layer.columns) == (packed.rows, packed.columns) == shape
    weight = packed.dequantize()
    np.testing.assert_allclose(weight.double().numpy(), expected, rtol=3e-7, atol=1e-30)
    rows = torch.tensor([shape[0] - 1, 0, shape[0] // 2])
    assert torch.equal(packed.decode_rows(rows), weight[rows])


@pytest.mark.parametrize("name", KINDS)
def test_what_is_trained(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    tensors, _ = stored(kind, 40, 96)
    layer, folder = layer_of(tmp_path, kind, tensors)
    expected = {"weight_scale"} if kind.dtype not in (torch.uint8, torch.float8_e4m3fn) else set()
    expected |= {"weight_global_scale"} & tensors.keys()
    packed = layer.packed(folder)
    assert set(layer.fields) == {field.name for field in packed.fields} == expected
    assert bool(layer.note) == (not expected)
    assert set(layer.tensors) == {f"m.q.{each}" for each in tensors}
    for field in packed.fields:
        assert field.dtype == packed.value(field.name).dtype == tensors[field.name].dtype
        assert torch.equal(packed.value(field.name), tensors[field.name])


def test_a_model_of_many_kinds(tmp_path: Path) -> None:
    names = ("w4-g32-sym", "w8-g32-asym", "int8-channel", "fp8-block", "nvfp4", "w4-actorder-asym", "mxfp4")
    path = write(tmp_path / "m", *names)
    model, tokenizer = zoquant.load(path, compute_dtype=torch.float32)
    assert tokenizer is None
    assert torch.isfinite(logits(model)).all()
    types = FORMAT.summarize(path).types
    assert {"int4 g32 sym": 1, "int8 g32 asym": 1, "float8 24x40": 1, "float4 g16": 1}.items() <= types.items()
    views = zoquant.attach(model)
    assert set(views.keys) == {key for key, span in FORMAT.index(path).items() if span.role == "scale"}


def test_notes(tmp_path: Path) -> None:
    path = write(tmp_path / "m", "int8-channel", "mxfp4", kv_cache_scheme={"num_bits": 8, "type": "float"})

    def dynamic(config: dict[str, Any]) -> None:
        group = config["quantization_config"]["config_groups"]["group_0"]
        group["input_activations"] = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}

    summary = FORMAT.summarize(edit_config(path, dynamic))
    assert list(summary.notes) == [
        "float4 g32: nothing to train, its scales are powers of two, so a step cannot be small",
        "activations: int8 at run time in transformers and vLLM, left in floating point by native layers",
        "key-value cache: its quantization is left to the server, native layers keep it as it is",
    ]
    assert summary.runtimes["vendor"].startswith("no: compressed-tensors turns its layers into")
    with pytest.raises(UnsupportedLayoutError, match="turns its layers into plain matrices"):
        FORMAT.open_vendor(path, compute_dtype=torch.float32, device=torch.device("cpu"))


def test_scales_of_activations_and_cache_belong_to_their_layers(tmp_path: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.k_scale"] = torch.ones(1)
        tensors["model.layers.0.mlp.up_proj.input_scale"] = torch.ones(1)

    path = edit_tensors(write(tmp_path / "m", "fp8-tensor"), add)
    index = FORMAT.index(path)
    assert not [key for key in index if key.endswith(("k_scale", "input_scale"))]
    zoquant.attach(zoquant.load(path, compute_dtype=torch.float32)[0])


def test_patterns_of_the_config_are_never_run(tmp_path: Path) -> None:
    """A pattern that backtracks for ever would hang any reader that tried it."""
    path = write(tmp_path / "m", "w4-g32-sym")

    def hostile(config: dict[str, Any]) -> None:
        said = config["quantization_config"]
        said["config_groups"]["group_0"]["targets"] = said["ignore"] = ["re:(([a-z._0-9]+)+)+!$"]

    assert len(FORMAT.layers(open_folder(edit_config(path, hostile)))) == 7


def _set(name: str, value: torch.Tensor | None) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    return change


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("w4-g32-sym", _set("weight_scale", None), "'m.q.weight_scale': expected a tensor of this name"),
        ("w4-g32-sym", _set("weight_shape", None), "'m.q.weight_shape': expected a tensor of this name"),
        ("w4-g32-sym", _set("weight_shape", torch.tensor([40, 97])), "'m.q.weight_packed': expected [40, 13] of int32"),
        ("w4-g32-sym", _set("weight_shape", torch.tensor([1 << 40, 96])), "'m.q.weight_packed'"),
        ("w4-g32-sym", _set("weight_shape", torch.tensor([40, -96])), "'m.q.weight_packed'"),
        ("w4-g32-sym", _set("weight_shape", torch.tensor([40])), "'m.q.weight_shape': expected [2]"),
        ("w4-g32-sym", _set("weight_packed", torch.ones(40, 11, dtype=torch.int32)), "'m.q.weight_packed'"),
        ("w4-g32-sym", _set("weight_packed", torch.ones(2, 20, 12, dtype=torch.int32)), "a matrix of int32"),
        ("w4-g32-sym", _set("weight_packed", torch.ones(40, 12)), "a matrix of int32, got [40, 12] of float32"),
        ("w4-g32-sym", _set("weight_scale", torch.ones(40, 4)), "'m.q.weight_scale': expected [40, 3]"),
        ("w4-g32-sym", _set("weight_scale", torch.ones(40, 3).double()), "'m.q.weight_scale'"),
        ("w4-g32-asym", _set("weight_zero_point", None), "'m.q.weight_zero_point'"),
        ("w4-g32-asym", _set("weight_zero_point", torch.ones(4, 3, dtype=torch.int32)), "expected [5, 3] of int32"),
        ("w4-tensor-asym", _set("weight_zero_point", torch.ones(5, 1, dtype=torch.int32)), "'m.q.weight_zero_point'"),
        ("w4-actorder", _set("weight_g_idx", torch.ones(95, dtype=torch.int32)), "'m.q.weight_g_idx': expected [96]"),
        ("int8-channel", _set("weight", torch.ones(40, 96)), "a matrix of int8, got [40, 96] of float32"),
        ("int8-channel", _set("weight", torch.ones(0, 96, dtype=torch.int8)), "'m.q.weight'"),
        ("fp8-block", _set("weight_scale", torch.ones(2, 2)), "expected [2, 3]"),
        ("nvfp4", _set("weight_global_scale", torch.ones(2)), "'m.q.weight_global_scale': expected [1, 1]"),
        ("nvfp4", _set("weight_scale", torch.ones(40, 6, dtype=torch.int8)), "'m.q.weight_scale'"),
        ("mxfp6", _set("weight_packed", torch.ones(40, 70, dtype=torch.uint8)), "whole codes of 6 bits"),
    ],
)
def test_tensors_that_contradict(tmp_path: Path, kind: str, change: Any, named: str) -> None:
    tensors, _ = stored(KINDS[kind], 40, 96)
    change(tensors)
    with pytest.raises(CheckpointError) as caught:
        FORMAT.layers(folder_of(tmp_path, KINDS[kind], tensors))
    assert named in str(caught.value)


@pytest.mark.parametrize("kind", ["w4-g32-asym", "w4-tensor-asym", "int8-group-asym"])
def test_zero_points_that_the_config_denies(tmp_path: Path, kind: str) -> None:
    tensors, expected = stored(KINDS[kind], 40, 96)
    config = config_of(KINDS[kind])
    (group,) = config["config_groups"].values()
    asym = {"weights": dict(group["weights"])}
    group["weights"]["symmetric"] = True
    folder = replace(folder_of(tmp_path, KINDS[kind], tensors), quantization=config)
    with pytest.raises(CheckpointError, match="weight_zero_point': expected zero points of 0, as 'symmetric' says"):
        FORMAT.layers(folder)["m.q"].packed(folder)
    config["config_groups"]["other"] = asym
    layer = FORMAT.layers(folder)["m.q"]
    np.testing.assert_allclose(layer.packed(folder).dequantize().double().numpy(), expected, rtol=3e-7, atol=1e-30)


@pytest.mark.parametrize("groups", [[-2, 0, 1], [0, 1, 3]])
def test_groups_that_do_not_exist(tmp_path: Path, groups: list[int]) -> None:
    tensors, _ = stored(KINDS["w4-actorder"], 40, 96)
    tensors["weight_g_idx"] = torch.tensor(groups, dtype=torch.int32).repeat(32)
    layer, folder = layer_of(tmp_path, KINDS["w4-actorder"], tensors)
    with pytest.raises(CheckpointError, match=r"m\.q\.weight_g_idx': expected groups 0 to 2"):
        layer.packed(folder)


def test_groups_that_are_not_used(tmp_path: Path) -> None:
    """Older files write -1 where columns keep their order."""
    tensors, expected = stored(KINDS["w4-g32-sym"], 40, 96)
    tensors["weight_g_idx"] = torch.full((96,), -1, dtype=torch.int32)
    layer, folder = layer_of(tmp_path, KINDS["w4-g32-sym"], tensors)
    np.testing.assert_allclose(layer.packed(folder).dequantize().double().numpy(), expected, rtol=3e-7)


ARGS = KINDS["w4-g32-sym"].args


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"config_groups": None}, "'config_groups': expected an object of objects"),
        ({"config_groups": {"g": ["Linear"]}}, "'config_groups'"),
        ({"config_groups": {"g": {"weights": 4}}}, "'config_groups.g.weights': expected an object"),
        ({"config_groups": {"g": {"weights": None}}}, "no quantized weights"),
        ({"config_groups": {"g": {"weights": {**ARGS, "num_bits": 9}}}}, "int of 1 to 8 bits"),
        ({"config_groups": {"g": {"weights": {**ARGS, "num_bits": True}}}}, "int of 1 to 8 bits"),
        ({"config_groups": {"g": {"weights": {**ARGS, "num_bits": 3}}}}, "'m.q.weight_packed'"),
        ({"config_groups": {"g": {"weights": {**ARGS, "group_size": "32"}}}}, "group_size': expected an integer"),
        ({"config_groups": {"g": {"weights": {**ARGS, "group_size": -1}}}}, "a strategy of"),
        ({"config_groups": {"g": {"weights": {**ARGS, "group_size": 64}}}}, "groups of 64"),
        ({"config_groups": {"g": {"weights": {**ARGS, "group_size": 48}}}}, "expected [40, 2]"),
        ({"config_groups": {"g": {"weights": {**ARGS, "strategy": "token"}}}}, "a strategy of"),
        ({"config_groups": {"g": {"weights": {**ARGS, "type": "complex"}}}}, "int of 1 to 8 bits"),
        (
            {"config_groups": {"g": {"weights": {**ARGS, "strategy": "block", "group_size": None}}}},
            "block_structure': expected two positive integers, got None",
        ),
    ],
)
def test_configs_that_lie(tmp_path: Path, said: dict[str, Any], named: str) -> None:
    folder = folder_of(tmp_path, KINDS["w4-g32-sym"], stored(KINDS["w4-g32-sym"], 40, 96)[0])
    with pytest.raises(CheckpointError) as caught:
        FORMAT.layers(replace(folder, quantization=said))
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"format": "marlin-24"}, "'marlin-24'"),
        ({"format": "sparse-24-bitmask"}, "'sparse-24-bitmask'"),
        ({"sparsity_config": {"format": "sparse-bitmask"}}, "'sparse-bitmask'"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "'transform_config' rotates activations"),
    ],
)
def test_refused_by_name(tmp_path: Path, said: dict[str, Any], named: str) -> None:
    folder = folder_of(tmp_path, KINDS["w4-g32-sym"], stored(KINDS["w4-g32-sym"], 40, 96)[0])
    with pytest.raises(UnsupportedLayoutError) as caught:
        FORMAT.layers(replace(folder, quantization={**folder.quantization, **said}))
    assert named in str(caught.value)


def test_a_strategy_that_is_not_named(tmp_path: Path) -> None:
    for kind, group in (("w4-g32-sym", 32), ("w4-channel-sym", -1), ("int8-tensor", None)):
        args = {**KINDS[kind].args, "strategy": None, "group_size": group}
        folder = folder_of(tmp_path / kind, KINDS[kind], stored(KINDS[kind], 40, 96)[0])
        said = {"config_groups": {"g": {"weights": args}}}
        assert FORMAT.layers(replace(folder, quantization=said))["m.q"].fields


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
WORDS = st.sampled_from(["int", "float", "group", "channel", "tensor", "block", "tensor_group", "marlin-24", "8x8"])
KEYS = st.sampled_from([*ARGS, "block_structure", "scale_dtype"])
WEIGHTS = st.dictionaries(KEYS, JSON | WORDS | st.integers(-2, 130), max_size=6).map(lambda more: {**ARGS, **more})


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> list[Folder]:
    path = tmp_path_factory.mktemp("modules")
    return [folder_of(path / name, kind, stored(kind, 40, 96)[0]) for name, kind in KINDS.items()]


@given(data=st.data())
def test_any_config_is_read_or_refused(modules: list[Folder], data: st.DataObject) -> None:
    group = st.fixed_dictionaries({"weights": WEIGHTS | JSON}, optional={"input_activations": JSON, "format": JSON})
    keys = {"config_groups": st.dictionaries(st.text(max_size=3), group | JSON, max_size=2) | JSON}
    more = dict.fromkeys(("format", "sparsity_config", "transform_config", "kv_cache_scheme"), JSON | WORDS)
    said = data.draw(st.fixed_dictionaries(keys, optional=more))
    folder = replace(data.draw(st.sampled_from(modules)), quantization=said)
    assert str(folder.path) in (refusal(folder) or str(folder.path))


def refusal(folder: Folder) -> str | None:
    """Return why a folder is refused, or None after reading it."""
    try:
        layers = FORMAT.layers(folder)
    except ZoquantError as error:
        return str(error)
    assert layers["m.q"].packed(folder).dequantize().shape == (40, 96)
    return None


@pytest.mark.parametrize("method", ["sparseml", "compressed_tensors", "compressed-tensors"])
def test_early_checkpoints_call_it_compression_config(tmp_path: Path, method: str) -> None:
    path = write(tmp_path / "m", "w4-g32-sym")
    expected = logits(zoquant.load(path, compute_dtype=torch.float32)[0])

    def earlier(config: dict[str, Any]) -> None:
        config["compression_config"] = {**config.pop("quantization_config"), "quant_method": method}

    edit_config(path, earlier)
    assert format_of(path).name == "compressed-tensors"
    assert torch.equal(logits(zoquant.load(path, compute_dtype=torch.float32)[0]), expected)
