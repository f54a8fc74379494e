"""Checkpoints of AQLM: every shape against float64, and files that lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import zoquant
from tests.backends.aqlm.samples import aqlm_folder, aqlm_matrix
from tests.checkpoint.folder.llama import edit_config, edit_tensors
from zoquant.backends.aqlm.format import AQLMFormat
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError
from zoquant.native import VectorWeight
from zoquant.testing.tensors import same_bits

SHAPES = [
    {"books": 1, "nbits": 16},
    {"books": 2, "nbits": 8},
    {"books": 1, "nbits": 12, "width": 16},
    {"books": 8, "nbits": 8, "width": 32},
    {"books": 1, "nbits": 8, "width": 4},
    {"books": 4, "nbits": 4, "width": 8},
    {"books": 2, "nbits": 8, "height": 2},
    {"books": 3, "nbits": 10, "height": 4, "width": 4},
    {"books": 1, "nbits": 6, "height": 8, "width": 1},
]
PATH = "model.layers.0.mlp.up_proj"


def reference(tensors: dict[str, Tensor]) -> NDArray[np.float64]:
    """Return the matrix in float64, weight by weight as the paper has it, with numpy alone."""
    codes = next(t for name, t in tensors.items() if name.endswith("codes")).numpy().astype(np.int64)
    books = next(t for name, t in tensors.items() if name.endswith("codebooks")).double().numpy()
    scales = next(t for name, t in tensors.items() if name.endswith("scales")).double().numpy()
    count, entries, height, width = books.shape
    weight = np.zeros((codes.shape[0] * height, codes.shape[1] * width))
    for i in range(codes.shape[0]):
        for j in range(codes.shape[1]):
            place = np.s_[i * height : (i + 1) * height, j * width : (j + 1) * width]
            weight[place] = scales[i, 0, 0, 0] * sum(books[k, codes[i, j, k] % entries] for k in range(count))
    return weight


def layer_of(path: Path, module: str) -> VectorWeight:
    folder = open_folder(path)
    packed = AQLMFormat().layers(folder)[module].packed(folder)
    assert isinstance(packed, VectorWeight)
    return packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def test_every_shape(tmp_path: Path, shape: dict[str, int], dtype: torch.dtype) -> None:
    path = aqlm_folder(tmp_path, **shape, dtype=dtype)
    packed = layer_of(path, PATH)
    tensors = aqlm_matrix(PATH, packed.rows, packed.columns, **shape, dtype=dtype, seed=len(PATH))
    assert [(field.name, field.role) for field in packed.fields] == [("scales", "scale"), ("codebooks", "codebook")]
    assert same_bits(packed.value("scales"), tensors[f"{PATH}.scales"])
    assert same_bits(packed.value("codebooks"), tensors[f"{PATH}.codebooks"])
    got = packed.dequantize().double()
    torch.testing.assert_close(got, torch.from_numpy(reference(tensors)), rtol=1e-5, atol=1e-6)
    rows = torch.tensor([5, 0, 5])
    assert same_bits(packed.decode_rows(rows).clone(), got[rows].float())


def test_codebooks_are_trained_on_request(tmp_path: Path) -> None:
    model, _ = zoquant.load(aqlm_folder(tmp_path), runtime="native", compute_dtype=torch.float32, device="cpu")
    assert {view.role for view in zoquant.attach(model)} == {"scale"}
    both = zoquant.attach(model, roles=("scale", "codebook"))
    assert {view.role for view in both} == {"scale", "codebook"}
    assert f"{PATH}.codebooks" in both.keys
    assert len(both) == 14


def test_what_inspect_says(tmp_path: Path) -> None:
    summary = AQLMFormat().summarize(aqlm_folder(tmp_path))
    assert (summary.layers, summary.types["2x8 g8"]) == (7, 7)


def change_tensor(name: str, tensor: Tensor | None) -> Any:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors.pop(f"{PATH}.{name}")
        if tensor is not None:
            tensors[f"{PATH}.{name}"] = tensor

    return change


@pytest.mark.parametrize(
    ("name", "tensor", "text"),
    [
        ("codes", torch.zeros(4, 4, 2, dtype=torch.int16), "up_proj.codes': expected .* of int8, got .* of int16"),
        ("codes", torch.zeros(4, 4, 3, dtype=torch.int8), r"up_proj.codes': expected \[4, 4, 2\]"),
        ("codes", torch.zeros(4, 4, dtype=torch.int8), r"up_proj.codes': expected \[rows / 1, columns / 8, 2\]"),
        ("codes", torch.zeros(0, 4, 2, dtype=torch.int8), r"up_proj.codes': expected \[rows / 1"),
        ("codebooks", torch.zeros(2, 128, 1, 8), r"up_proj.codebooks': expected \[2, 256, 1, 8\]"),
        ("codebooks", torch.zeros(2, 256, 1, 8, dtype=torch.int8), "of float32 or float16 or bfloat16, got"),
        ("codebooks", None, "up_proj.codebooks': expected a tensor of this name, got none"),
        ("scales", torch.ones(3, 1, 1, 1), "up_proj.scales': expected"),
        ("scales", None, "up_proj.scales': expected a tensor of this name, got none"),
    ],
)
def test_tensors_that_lie(tmp_path: Path, name: str, tensor: Tensor | None, text: str) -> None:
    path = edit_tensors(aqlm_folder(tmp_path), change_tensor(name, tensor))
    with pytest.raises(CheckpointError, match=text):
        AQLMFormat().index(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_codebooks": 3}, r"expected \[.*, 3\]"),
        ({"nbits_per_codebook": 7}, r"codebooks': expected \[2, 128, 1, 8\]"),
        ({"nbits_per_codebook": 1 << 40}, "nbits_per_codebook': expected a number from 1 to 24"),
        ({"in_group_size": "8"}, "in_group_size': expected a number"),
        ({"in_group_size": 0}, "in_group_size': expected a number"),
        ({"out_group_size": None}, "out_group_size': expected a number from 1 to 4096, got None"),
        ({"num_codebooks": True}, "num_codebooks': expected a number"),
    ],
)
def test_configs_that_lie(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    path = edit_config(aqlm_folder(tmp_path), lambda config: config["quantization_config"].update(change))
    with pytest.raises(CheckpointError, match=text):
        AQLMFormat().index(path)


def test_a_checkpoint_saved_after_a_forward(tmp_path: Path) -> None:
    """aqlm turns codes around in place at its first forward on a CPU; what is saved then no longer fits the model."""
    path = aqlm_folder(tmp_path)
    turned = torch.zeros(4, 64, 2, dtype=torch.int8)
    with pytest.raises(CheckpointError):
        zoquant.load(edit_tensors(path, change_tensor("codes", turned)), runtime="native", device="cpu")
