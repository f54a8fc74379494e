"""What a folder of bitsandbytes is refused for: tensors that are missing, left over, or not what the JSON says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.backends.bitsandbytes.reference import packed_json
from tests.backends.bitsandbytes.samples import EIGHT_BIT, FOUR_BIT, eight_bit_folder, four_bit_folder
from tests.checkpoint.folder.llama import edit_config, edit_tensors
from zoquant.backends.bitsandbytes.format import BitsAndBytesFormat
from zoquant.errors import CheckpointError

FORMAT = BitsAndBytesFormat()
PLAIN = "model.layers.0.mlp.down_proj"
NESTED = "model.layers.0.self_attn.k_proj"
STATE = "quant_state.bitsandbytes__nf4"


def state(**changes: Any) -> Tensor:
    """Return the JSON of the plain layer, changed; a value of None leaves the key out."""
    content = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [64, 128], **changes}
    return packed_json({key: value for key, value in content.items() if value is not None})


def replaced(name: str, value: Tensor | None) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[name]
        if value is not None:
            tensors[name] = value

    return change


FOUR_BIT_LIES: list[tuple[str, Tensor | None, str]] = [
    (f"{PLAIN}.weight", None, "expected a tensor of this name, got none"),
    (f"{PLAIN}.weight.absmax", None, "expected a tensor of this name, got none"),
    (f"{PLAIN}.weight.quant_map", None, "expected a tensor of this name, got none"),
    (f"{PLAIN}.weight.{STATE}", None, "expected a quant_state.bitsandbytes__nf4, quant_state.bitsandbytes__fp4 or SCB"),
    (f"{PLAIN}.weight", torch.zeros(10, 1, dtype=torch.uint8), "expected 4096 bytes for 64 x 128 codes of 4 bits"),
    (f"{PLAIN}.weight.absmax", torch.ones(2, 64, dtype=torch.bfloat16), "expected [128] of float32, got [2, 64] of bf"),
    (f"{PLAIN}.weight.absmax", torch.ones(129), "expected [128] of float32, got [129] of float32"),
    (
        f"{PLAIN}.weight.quant_map",
        torch.linspace(-1, 1, 16),
        "expected the table of nf4, which the kernels use, got an",
    ),
    (f"{NESTED}.weight.absmax", torch.ones(32), "expected [32] of uint8, got [32] of float32"),
    (f"{NESTED}.weight.nested_absmax", torch.ones(2), "expected [1] of float32, got [2] of float32"),
    (f"{NESTED}.weight.nested_quant_map", torch.ones(255), "expected [256] of float32, got [255] of float32"),
    (f"{NESTED}.weight.nested_absmax", None, "expected a tensor of this name, got none"),
    (f"{PLAIN}.weight.{STATE}", torch.tensor([0x7B], dtype=torch.uint8), "expected JSON, got Expecting property name"),
    (f"{PLAIN}.weight.{STATE}", torch.full((3,), 0xFF, dtype=torch.uint8), "expected JSON, got 'utf-8' codec"),
    (f"{PLAIN}.weight.{STATE}", packed_json([1]), "expected a JSON object, got list"),
    (f"{PLAIN}.weight.{STATE}", torch.zeros(0, dtype=torch.uint8), "expected at most 4096 bytes of JSON, got [0] of"),
    (f"{PLAIN}.weight.{STATE}", torch.full((4097,), 32, dtype=torch.uint8), "expected at most 4096 bytes of JSON"),
    (f"{PLAIN}.weight.{STATE}", torch.zeros(4), "expected at most 4096 bytes of JSON, got [4] of torch.float32"),
    (f"{PLAIN}.weight.{STATE}", state(quant_type="fp4"), "expected 'nf4', as the tensor's name says, got 'fp4'"),
    (f"{PLAIN}.weight.{STATE}", state(quant_type=None), "expected 'nf4', as the tensor's name says, got None"),
    (f"{PLAIN}.weight.{STATE}", state(blocksize=63), "blocksize': expected one of (32, 64,"),
    (f"{PLAIN}.weight.{STATE}", state(blocksize=True), "blocksize': expected one of (32, 64,"),
    (f"{PLAIN}.weight.{STATE}", state(blocksize=128), "expected [64] of float32, got [128] of float32"),
    (f"{PLAIN}.weight.{STATE}", state(shape=[64]), "expected two counts, an even number of columns, got [64]"),
    (f"{PLAIN}.weight.{STATE}", state(shape=[128, 63]), "expected two counts, an even number of columns"),
    (f"{PLAIN}.weight.{STATE}", state(shape=[-64, -128]), "expected two counts, an even number of columns"),
    (f"{PLAIN}.weight.{STATE}", state(shape=[1 << 40, 2]), "expected two counts, an even number of columns"),
    (f"{PLAIN}.weight.{STATE}", state(shape=[1 << 30, 1 << 30]), "expected 576460752303423488 bytes for"),
    (f"{PLAIN}.weight.{STATE}", state(shape="64x128"), "expected two counts, an even number of columns"),
    (f"{NESTED}.weight.{STATE}", state(shape=[32, 64]), "expected [32] of float32, got [32] of uint8"),
    (f"{NESTED}.weight.{STATE}", state(shape=[32, 64], nested_blocksize=0, nested_offset=0.0), "a power of two"),
    (f"{NESTED}.weight.{STATE}", state(shape=[32, 64], nested_blocksize=256), "nested_offset': expected a finite"),
    (f"{NESTED}.weight.{STATE}", state(shape=[32, 64], nested_blocksize=256, nested_offset=float("nan")), "a finite"),
]


@pytest.mark.parametrize(("name", "value", "text"), FOUR_BIT_LIES)
def test_four_bits(tmp_path: Path, name: str, value: Tensor | None, text: str) -> None:
    path = edit_tensors(four_bit_folder(tmp_path), replaced(name, value))
    with pytest.raises(CheckpointError) as caught:
        FORMAT.index(path)
    assert text in str(caught.value)
    assert name.partition(".weight")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (f"{PLAIN}.weight", None, "expected a tensor of this name, got none"),
        (f"{PLAIN}.weight", torch.zeros(64, 128), "expected a matrix of int8, got [64, 128] of float32"),
        (f"{PLAIN}.weight", torch.zeros(64, dtype=torch.int8), "expected a matrix of int8, got [64] of int8"),
        (f"{PLAIN}.weight", torch.zeros(0, 8, dtype=torch.int8), "expected a matrix of int8, got [0, 8] of int8"),
        (f"{PLAIN}.SCB", None, "or SCB of its layer, got none"),
        (f"{PLAIN}.SCB", torch.ones(63), "expected [64] of float32, one for each 1 x 128"),
        (
            f"{PLAIN}.SCB",
            torch.ones(64).double(),
            "expected [64] of float32, one for each 1 x 128",
        ),
        (f"{PLAIN}.weight_format", torch.zeros(2, dtype=torch.uint8), "expected [] of uint8, got [2] of uint8"),
    ],
)
def test_eight_bits(tmp_path: Path, name: str, value: Tensor | None, text: str) -> None:
    path = edit_tensors(eight_bit_folder(tmp_path), replaced(name, value))
    with pytest.raises(CheckpointError) as caught:
        FORMAT.index(path)
    assert text in str(caught.value)
    assert PLAIN in str(caught.value)


def test_orders_of_a_gpu_are_refused(tmp_path: Path) -> None:
    other = replaced(f"{PLAIN}.weight_format", torch.tensor(2, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="expected 0, rows in their order, got 2"):
        FORMAT.index(edit_tensors(eight_bit_folder(tmp_path), other))


def test_a_checkpoint_without_weight_format(tmp_path: Path) -> None:
    path = edit_tensors(eight_bit_folder(tmp_path), replaced(f"{PLAIN}.weight_format", None))
    assert f"{PLAIN}.SCB" in FORMAT.index(path)


@pytest.mark.parametrize(("write", "lie"), [(four_bit_folder, EIGHT_BIT), (eight_bit_folder, FOUR_BIT)])
@pytest.mark.parametrize("how", ["other", "both", "neither"])
def test_a_config_that_says_other_bits(tmp_path: Path, write: Any, lie: dict[str, Any], how: str) -> None:
    def change(config: dict[str, Any]) -> None:
        said = {"other": lie, "both": {"load_in_4bit": True, "load_in_8bit": True}, "neither": {}}[how]
        config["quantization_config"] = {"quant_method": "bitsandbytes", **said}

    path = edit_config(write(tmp_path), change)
    with pytest.raises(CheckpointError, match="'quantization_config': expected one of load_in_4bit and load_in_8bit"):
        FORMAT.index(path)


def test_a_config_without_tensors_to_it(tmp_path: Path) -> None:
    def only_dense(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "_proj" in name]:
            del tensors[name]

    with pytest.raises(CheckpointError, match=r"a config of \[4\] bits and tensors of \[\] bits"):
        FORMAT.index(edit_tensors(four_bit_folder(tmp_path), only_dense))


def test_inspect(tmp_path: Path) -> None:
    summary = FORMAT.summarize(four_bit_folder(tmp_path))
    assert summary.layers == 7
    assert {name: count for name, count in summary.types.items() if name != "float32"} == {
        "nf4 b64": 2, "nf4 b128": 1, "nf4 b4096": 1, "nf4 b64 nested": 1, "fp4 b64": 1, "fp4 b32 nested": 1,
    }  # fmt: skip
    assert FORMAT.summarize(eight_bit_folder(tmp_path)).types["int8 rows"] == 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_bit_folder(tmp_path_factory.mktemp("whole"))


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=120) | st.text(max_size=60).map(str.encode), at=st.integers(0, 90))
def test_any_bytes_of_json(whole: Path, data: bytes, at: int) -> None:
    """Whatever stands in the JSON, it is read to the same matrix as before, or refused with one clear error."""
    file = whole / "model.safetensors"
    before = file.read_bytes()
    start = before.index(b'{"quant_type": "nf4"')
    try:
        place = start + at
        file.write_bytes(before[:place] + data[: len(before) - place] + before[place + len(data) :])
        assert file.stat().st_size == len(before)
        try:
            found = FORMAT.index(whole)
        except CheckpointError:
            return
        assert len(found) == 12
    finally:
        file.write_bytes(before)
