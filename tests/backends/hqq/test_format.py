"""Checkpoints of HQQ: every layout against float64, both kinds of file, and files that lie."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoquant
from tests.backends.hqq import reference
from tests.backends.hqq.samples import as_archive, hqq_archive, hqq_folder, hqq_matrix, quantize_meta
from tests.checkpoint.folder.llama import edit_tensors
from zoquant.backends.hqq.format import HQQFormat
from zoquant.backends.hqq.weights import HQQWeight
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError, UnsupportedLayoutError
from zoquant.registry import format_of
from zoquant.testing.tensors import same_bits

ROWS, COLUMNS = 24, 16


def opened(folder: Path, matrix: dict[str, Any]) -> HQQWeight:
    """Return the native weight of one matrix, through a file."""
    torch.save({"m.q": matrix}, folder / "qmodel.pt")
    place = open_folder(folder)
    packed = HQQFormat().layers(place)["m.q"].packed(place)
    assert isinstance(packed, HQQWeight)
    return packed


def assert_agrees(packed: HQQWeight, matrix: dict[str, Any]) -> None:
    expected = torch.from_numpy(reference.dequantize(matrix))
    got = packed.dequantize().double()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    rows = torch.tensor([5, 0, ROWS - 1, 5])
    assert same_bits(packed.decode_rows(rows).clone(), got[rows].float())
    assert same_bits(packed.decode_rows(slice(3, 11)).clone(), got[3:11].float())


@pytest.mark.parametrize("store", [None, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [8, 12, 16, 48, None])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_every_layout(tmp_path: Path, bits: int, axis: int, size: int | None, store: Any) -> None:
    height = ROWS * COLUMNS // (size or COLUMNS) if axis == 1 else size or ROWS
    count = 10 if bits == 3 else 8 // bits
    if height % count and bits != 3:
        pytest.skip("hqq cannot pack a height that its words do not divide")
    if bits == 3 and store is not None and store.itemsize != 4:
        store = torch.bfloat16
    matrix = hqq_matrix(ROWS, COLUMNS, bits=bits, axis=axis, size=size, store=store)
    packed = opened(tmp_path, matrix)
    assert [(field.name, field.role) for field in packed.fields] == [("scale", "scale"), ("zero", "zero")]
    assert same_bits(packed.value("scale"), matrix["scale"])
    assert_agrees(packed, matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("zero", ["plain", "one", "groups"])
@pytest.mark.parametrize("scale", ["plain", "one", "groups"])
def test_numbers_of_two_levels(tmp_path: Path, scale: str, zero: str, dtype: torch.dtype) -> None:
    matrix = hqq_matrix(ROWS, COLUMNS, dtype=dtype)
    for name, kind in (("scale", scale), ("zero", zero)):
        if kind != "plain":
            matrix = quantize_meta(matrix, name, size=None if kind == "one" else 16)
    packed = opened(tmp_path, matrix)
    plain = {name for name in ("scale", "zero") if name in matrix}
    second = {f"meta_{name}.{part}" for name in {"scale", "zero"} - plain for part in ("scale", "zero")}
    assert {field.name for field in packed.fields} == plain | second
    assert_agrees(packed, matrix)
    for field in packed.fields:
        before = packed.dequantize()
        packed.value(field.name).mul_(1.5)
        assert not torch.equal(packed.dequantize(), before)


def test_groups_over_the_end_of_rows(tmp_path: Path) -> None:
    """hqq asks of a group only that it divides the whole matrix."""
    assert_agrees(opened(tmp_path, matrix := hqq_matrix(ROWS, COLUMNS, size=24)), matrix)
    assert_agrees(opened(tmp_path, matrix := hqq_matrix(ROWS, COLUMNS, size=96, axis=0)), matrix)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(input_ids=torch.arange(12).view(2, 6)).logits
    return output


@pytest.mark.parametrize("old", [False, True])
def test_hqq_itself_computes_the_same(tmp_path: Path, old: bool) -> None:
    """Two levels in files of its first kind alone: hqq 0.2.8 wrote, but cannot load, the others."""
    pytest.importorskip("hqq", reason="hqq is not installed")
    path = hqq_archive(tmp_path, old=old, levels=2 if old else 1)
    native, _ = zoquant.load(path, runtime="native", compute_dtype=torch.float32, device="cpu")
    vendor, _ = zoquant.load(path, runtime="vendor", compute_dtype=torch.float32, device="cpu")
    torch.testing.assert_close(logits(native), logits(vendor), rtol=1e-5, atol=1e-5)
    kinds: Any = ("scale", "zero")
    views = {name: zoquant.attach(model, roles=kinds) for name, model in (("native", native), ("vendor", vendor))}
    assert views["native"].keys == views["vendor"].keys
    assert views["native"].fingerprints() == views["vendor"].fingerprints()
    views["vendor"].add(1, 0.05, "gaussian")
    views["vendor"].write()
    zoquant.save_delta(tmp_path / "delta.safetensors", views["vendor"])
    zoquant.load_delta(tmp_path / "delta.safetensors", views["native"])
    moved = logits(native)
    torch.testing.assert_close(moved, logits(vendor), rtol=1e-5, atol=1e-5)
    out = zoquant.export(path, delta=tmp_path / "delta.safetensors", out=tmp_path / "tuned")
    assert zipfile.ZipFile(out / "qmodel.pt").testzip() is None
    again, _ = zoquant.load(out, runtime="vendor", device="cpu")
    torch.testing.assert_close(logits(again), moved, rtol=1e-5, atol=1e-5)


def test_both_kinds_of_file_hold_the_same(tmp_path: Path) -> None:
    one, other = hqq_folder(tmp_path), hqq_archive(tmp_path)
    assert format_of(one).name == format_of(other).name == "hqq"
    first, second = HQQFormat().index(one), HQQFormat().index(other)
    key = "model.layers.0.self_attn.k_proj.scale"
    assert first[key].tensor == second[key].tensor == key
    assert first[key].shape == second[key].shape
    assert (first[key].file, second[key].file) == ("model.safetensors", "qmodel.pt")


def test_what_inspect_says(tmp_path: Path) -> None:
    summary = HQQFormat().summarize(hqq_archive(tmp_path))
    assert summary.layers == 7
    assert summary.types["4-bit g8 axis 1, scale quantized, zero quantized"] == 1
    assert summary.types["3-bit g8 axis 0"] == 1


CASES: list[tuple[dict[str, Any], str]] = [
    ({"shape": (25, 15)}, "'m.q.group_size': expected a divisor of 25 x 15, got 8"),
    ({"shape": (48, 16)}, "'m.q.W_q': expected 384 bytes for 96 x 8 codes of 4 bits, got 192 of uint8"),
    ({"shape": (24, 0)}, "'m.q.shape': expected rows and columns"),
    ({"shape": (24,)}, "'m.q.shape': expected rows and columns"),
    ({"shape": None}, "'m.q.shape': expected rows and columns, got None"),
    ({"packing": "5bit_u8"}, "'m.q.packing': expected one of 8bit_u8, 4bit_u8"),
    ({"packing": "3bit_32"}, "'m.q.W_q': expected 160 bytes"),
    ({"axis": 2}, "'m.q.axis': expected 0 or 1, got 2"),
    ({"group_size": 0}, "'m.q.group_size': expected a divisor"),
    ({"group_size": True}, "'m.q.group_size': expected a divisor"),
    ({"group_size": "x"}, "'m.q.group_size': expected a divisor"),
    ({"group_size": 16}, "'m.q.scale': expected 24 numbers in floating point, got \\[48, 1\\] of float32"),
    ({"W_q": torch.zeros(24, 8, dtype=torch.int8)}, "'m.q.W_q': expected 192 bytes"),
    ({"scale": torch.ones(48, 1, dtype=torch.int32)}, "'m.q.scale': expected 48 numbers in floating point"),
    ({"zero": torch.ones(47, 1)}, "'m.q.zero': expected 48 numbers"),
    ({"zero": 3.0}, "'m.q.zero': expected a tensor of this name, got none"),
    ({"quant_scale": True}, "'m.q.meta_scale.shape': expected rows and columns, got None"),
    ({"shape": torch.ones(2)}, "'m.q.shape': expected rows and columns"),
    ({"shape": torch.ones(99)}, "'m.q.shape': expected a setting of at most 64 bytes"),
]


@pytest.mark.parametrize(("change", "text"), CASES)
def test_settings_that_lie(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        opened(tmp_path, {**hqq_matrix(ROWS, COLUMNS), **change})


def test_offloaded_numbers_are_refused(tmp_path: Path) -> None:
    matrix = hqq_matrix(ROWS, COLUMNS)
    stacked = torch.stack([matrix.pop("zero"), matrix.pop("scale")])
    with pytest.raises(UnsupportedLayoutError, match="set offload_meta=False and save it again"):
        opened(tmp_path, {**matrix, "zero_scale": stacked})


def test_a_matrix_of_another_shape_than_the_model(tmp_path: Path) -> None:
    path = hqq_folder(tmp_path)

    def shrink(tensors: dict[str, Tensor]) -> None:
        shape = tensors["model.layers.0.mlp.down_proj.shape"]
        tensors["model.layers.0.mlp.down_proj.shape"] = torch.stack([shape[0] // 2, shape[1] * 2])

    edit_tensors(path, shrink)
    with pytest.raises(CheckpointError, match=r"down_proj': expected a matrix of \[\d+, \d+\], got"):
        zoquant.load(path, runtime="native", device="cpu")


def test_a_stranger_among_the_modules(tmp_path: Path) -> None:
    path = hqq_archive(tmp_path)
    content: Any = torch.load(path / "qmodel.pt", weights_only=True)
    torch.save({**content, "model.nothing": {"weight": torch.ones(2)}}, path / "qmodel.pt")
    with pytest.raises(CheckpointError, match=r"model\.nothing"):
        zoquant.load(path, runtime="native", device="cpu")


def test_a_folder_without_words(tmp_path: Path) -> None:
    path = as_archive(hqq_folder(tmp_path), {})
    torch.save({"m": {"weight": torch.ones(2)}}, path / "qmodel.pt")
    with pytest.raises(CheckpointError, match="at least one matrix with W_q"):
        HQQFormat().index(path)
