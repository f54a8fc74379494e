"""A made-up format told by facts alone: 3-bit codes ten to a word, groups of 30, scale and offset transposed."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import zoquant
from tests.checkpoint.folder.llama import edit_tensors, write_llama, write_tensors
from zoquant.checkpoint.folder import (
    AffineLayout,
    Folder,
    FolderFormat,
    StoredCodes,
    StoredMatrix,
    StoredNumbers,
    layouts_that_fit,
    open_folder,
)
from zoquant.errors import CheckpointError

LAYOUT = AffineLayout(
    type="3-bit g30",
    codes=StoredCodes("words", (torch.int32,), bits=3, per_word=10, offset=4),
    scale=StoredNumbers("scale", (1, 30), transposed=True),
    offset=StoredNumbers("offset", (1, 30), transposed=True),
)


class Nib3(FolderFormat):
    """All of it: the layout above, and where matrices are."""

    name = "nib3"
    methods = frozenset({"nib3"})

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        return LAYOUT.matrices(folder)


PATH = "model.layer"
FORMAT = Nib3()


def stored(rows: int, columns: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Return random tensors by local name, and the weight that they stand for, one number at a time."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 8, (rows, columns))
    words = np.zeros((rows, columns // 10), np.int64)
    for column in range(columns):
        words[:, column // 10] |= codes[:, column] << 3 * (column % 10)
    scale, offset = (random.uniform(0.5, 1, (columns // 30, rows)).astype(np.float16) / 20 for _ in range(2))
    wide = [np.repeat(each.T.astype(np.float64), 30, 1) for each in (scale, offset)]
    tensors = {"words": words.astype(np.int32), "scale": scale, "offset": offset}
    weight = (codes - 4) * wide[0] + wide[1]
    return {name: torch.from_numpy(each) for name, each in tensors.items()}, torch.from_numpy(weight).float()


def folder_of(path: Path, rows: int = 8, columns: int = 60) -> Path:
    tensors = {f"{PATH}.{name}": tensor for name, tensor in stored(rows, columns)[0].items()}
    return write_tensors(path, tensors, {"quant_method": "nib3"})


def test_matrix_and_index(tmp_path: Path) -> None:
    path = folder_of(tmp_path)
    folder, (tensors, expected) = open_folder(path), stored(8, 60)
    matrix = FORMAT.layers(folder)[PATH]
    packed = matrix.packed(folder)
    torch.testing.assert_close(packed.dequantize(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(LAYOUT.weight(tensors).dequantize(), packed.dequantize())
    assert (matrix.rows, matrix.columns, matrix.type) == (8, 60, "3-bit g30")
    assert [field.name for field in packed.fields] == ["scale", "offset"]
    assert torch.equal(packed.value("offset"), tensors["offset"])
    grids = packed.grids()
    assert [*grids] == ["scale", "offset"]
    assert all(grid.transposed and grid.shape == (8, 2) for grid in grids.values())
    index = FORMAT.index(path)
    assert {key: span.shape for key, span in index.items()} == {f"{PATH}.scale": (2, 8), f"{PATH}.offset": (2, 8)}
    for key, span in index.items():
        data = (path / span.file).read_bytes()[span.offset :]
        assert data.startswith(tensors[key.rpartition(".")[2]].numpy().tobytes())


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("words", lambda old: old[:, :4], "words': expected columns that groups of 30 divide"),
        ("words", lambda old: old.long(), "words': expected a matrix of int32, got [8, 6] of int64"),
        ("words", lambda old: old[:0], "words': expected a matrix of int32, got [0, 6] of int32"),
        ("scale", lambda old: old.t(), "scale': expected [2, 8] of float32 or float16 or bfloat16"),
        ("scale", lambda old: old.int(), "got [2, 8] of int32"),
        ("offset", lambda old: old[0], "offset': expected [2, 8]"),
        ("offset", None, "offset': expected a tensor of this name, got none"),
    ],
)  # fmt: skip
def test_what_does_not_fit(tmp_path: Path, name: str, change: Callable[[Tensor], Tensor] | None, text: str) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        old = tensors.pop(f"{PATH}.{name}")
        if change is not None:
            tensors[f"{PATH}.{name}"] = change(old).contiguous()

    with pytest.raises(CheckpointError) as caught:
        FORMAT.index(edit_tensors(folder_of(tmp_path), edit))
    assert text in str(caught.value)


def test_the_first_of_some_layouts_that_fit(tmp_path: Path) -> None:
    folder = open_folder(folder_of(tmp_path))
    other = AffineLayout(type="other", codes=LAYOUT.codes, scale=StoredNumbers("scale", (1, 60), transposed=True))
    assert layouts_that_fit(folder, PATH, [other, LAYOUT]) == [LAYOUT]
    with pytest.raises(CheckpointError, match=r"expected \[1, 8\] of"):
        layouts_that_fit(folder, PATH, [other])


def test_trained_exported_and_loaded_again(tmp_path: Path) -> None:
    """The whole way on a model, and every law of the kit."""

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        return {f"{path}.{name}": each for name, each in stored(weight.shape[0], weight.shape[1], len(path))[0].items()}

    path = write_llama(tmp_path / "nib3", quantize, {"quant_method": "nib3"}, hidden_size=60, intermediate_size=120)
    zoquant.register(format=FORMAT)
    try:
        zoquant.testing.check_format(path, steps=3)
    finally:
        zoquant.unregister("nib3")
