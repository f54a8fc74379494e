"""What a folder of torchao is refused for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoquant
from tests.backends.torchao.samples import torchao_folder
from zoquant.backends.torchao.format import TorchAOFormat
from zoquant.errors import CheckpointError

FORMAT = TorchAOFormat()
INT8 = "model.layers.0.mlp.down_proj"
INT4 = "model.layers.0.mlp.up_proj"


def edit(folder: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> Path:
    """Change tensors and metadata; the metadata of each weight is decoded before and encoded after."""
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = {name: json.loads(text) if text.startswith("{") else text for name, text in file.metadata().items()}
    tensors = load_file(path)
    change(tensors, metadata)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    save_file(tensors, path, texts)
    return folder


def tensor(name: str, value: Tensor | None) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    def change(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        del tensors[name]
        if value is not None:
            tensors[name] = value

    return change


def said(name: str, **changes: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    def change(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        content = metadata[f"{name}.weight"]
        content["_data"].update(changes.pop("data", {}))
        content.update(changes)

    return change


def without(name: str) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, metadata: metadata.pop(f"{name}.weight") and None


def raw(name: str, text: str) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, metadata: metadata.__setitem__(f"{name}.weight", text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (tensor(f"{INT8}._weight_qdata", None), "expected a tensor of this name, got none"),
        (tensor(f"{INT8}._weight_scale", None), "expected a tensor of this name, got none"),
        (tensor(f"{INT8}._weight_zero_point", None), "expected a tensor of this name, got none"),
        (tensor(f"{INT8}._weight_qdata", torch.zeros(64, 128)), "expected a matrix of int8, got [64, 128] of float32"),
        (
            tensor(f"{INT8}._weight_qdata", torch.zeros(8, dtype=torch.int8)),
            "expected a matrix of int8, got [8] of int8",
        ),
        (
            tensor(f"{INT8}._weight_qdata", torch.zeros(0, 8, dtype=torch.int8)),
            "expected a matrix of int8, got [0, 8] of int8",
        ),
        (
            tensor(f"{INT8}._weight_scale", torch.ones(64)),
            "expected [64, 1] of float32 or float16 or bfloat16, one for",
        ),
        (
            tensor(f"{INT8}._weight_scale", torch.ones(64, 1).char()),
            "one for each 1 x 128 weights, got [64, 1] of int8",
        ),
        (
            tensor(f"{INT8}._weight_zero_point", torch.ones(64, 1).int()),
            "one for each 1 x 128 weights, got [64, 1] of int32",
        ),
        (
            tensor(f"{INT4}._weight_zero_point", torch.ones(2, 128).char()),
            "one for each 1 x 32 weights, got [2, 128] of int8",
        ),
        (tensor(f"{INT4}._weight_scale", torch.ones(128, 2)), "expected [2, 128] of float32"),
        (said(INT8, data={"block_size": [1, 100]}), "expected divisors of [64, 128], got [1, 100]"),
        (said(INT8, data={"block_size": [1]}), "expected rows and columns of a block of a matrix, got [1]"),
        (said(INT8, data={"block_size": [0, 128]}), "expected rows and columns of a block of a matrix, got [0, 128]"),
        (said(INT8, data={"block_size": [1, 1 << 40]}), "expected rows and columns of a block of a matrix"),
        (said(INT8, data={"block_size": "rows"}), "expected rows and columns of a block of a matrix, got 'rows'"),
        (said(INT4, data={"block_size": [2, 32]}), "expected groups of columns, [1, n], got (2, 32)"),
        (said(INT8, _tensor_data_names=["qdata"]), "expected 'scale' in '_tensor_data_names', got ['qdata']"),
        (said(INT8, _tensor_data_names=["scale", "qdata"]), "expected a description in the metadata of the file, got"),
        (said(INT8, _tensor_data_names=["qdata", "scale", "x"]), "_weight_x': expected a tensor of this name"),
        (said(INT8, _tensor_data_names="qdata"), "expected '_data' and '_tensor_data_names', got"),
        (said(INT8, _tensor_data_names=["qdata", "scale", "act_pre_scale"]), "got a scale of the activations besides"),
        (said(INT8, _type="MXTensor"), "got MXTensor: its scales are powers of two, and a step is not continuous"),
        (said(INT8, _type="Int4TilePackedTo4dTensor"), "its words are in the order of one GPU kernel's tiles"),
        (said(INT8, _type="NewTensor"), "got NewTensor: zoquant does not know it"),
        (said(INT8, _type=["Int8Tensor"]), "zoquant does not know it"),
        (said(INT8, _type="Float8Tensor"), "expected a matrix of float8_e4m3fn or float8_e5m2, got [64, 128] of int8"),
        (without(INT8), "expected a description in the metadata of the file, got none"),
        (raw(INT8, "{"), "expected JSON in the metadata of the file, got Expecting property name"),
        (raw(INT8, "[1]"), "expected a JSON object in the metadata of the file, got '[1]'"),
        (raw(INT8, "{" + " " * 20000 + "}"), "expected a JSON object in the metadata of the file"),
        (raw(INT8, "[" * 9000), "expected JSON in the metadata of the file"),
    ],
)
def test_lies(tmp_path: Path, change: Any, text: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        FORMAT.index(edit(torchao_folder(tmp_path), change))
    assert text in str(caught.value)
    assert INT8 in str(caught.value) or INT4 in str(caught.value)


def test_a_file_without_descriptions(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        metadata.clear()

    with pytest.raises(CheckpointError, match="expected torchao's description of at least one weight, got none"):
        FORMAT.index(edit(torchao_folder(tmp_path), change))


def test_a_scale_that_is_a_number(tmp_path: Path) -> None:
    """A scale of the whole tensor may have no dimensions."""
    change = tensor("model.layers.0.self_attn.v_proj._weight_scale", torch.tensor(0.01))
    path = edit(torchao_folder(tmp_path), change)
    model: Any
    key = "model.layers.0.self_attn.v_proj.weight_scale"
    model, _ = zoquant.load(path, runtime="native")
    views = zoquant.attach(model, include=key)
    assert FORMAT.index(path)[key].shape == views[0].shape == ()
    assert views[0].read() == 0.01
    codes = load_file(path / "model.safetensors")["model.layers.0.self_attn.v_proj._weight_qdata"]
    assert torch.equal(model.get_submodule(key.rpartition(".")[0]).packed.dequantize(), codes.float() * 0.01)


def test_inspect(tmp_path: Path) -> None:
    summary = FORMAT.summarize(torchao_folder(tmp_path))
    assert summary.layers == 7
    assert {name: count for name, count in summary.types.items() if name != "float32"} == {
        "int8 rows": 1, "float8_e4m3fn rows": 1, "float8_e5m2 blocks 16x16": 1, "int8 tensor": 1, "int4 g32": 2,
        "int4 g16": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torchao_folder(tmp_path_factory.mktemp("whole"))


@settings(deadline=None, max_examples=200)
@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["_data", "x"]), inner),
    ),
    key=st.sampled_from(["_type", "_data", "_tensor_data_names", "block_size", "target_dtype"]),
)
def test_any_description(whole: Path, content: Any, key: str) -> None:
    """Whatever the metadata says, it is followed, or refused with one clear error."""
    file = whole / "model.safetensors"
    before = file.read_bytes()
    change = said(INT8, **({key: content} if key.startswith("_") else {"data": {key: content}}))
    try:
        edit(whole, change)
        assert len(FORMAT.index(whole)) == 14
    except CheckpointError as error:
        assert INT8 in str(error)  # noqa: PT017
    finally:
        file.write_bytes(before)
