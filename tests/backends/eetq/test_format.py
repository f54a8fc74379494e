"""EETQ: the order of the kernels against a reference, and tensors that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backends.eetq.samples import stored, write
from tests.checkpoint.folder.llama import edit_tensors
from zoquant.backends.eetq.format import EETQFormat
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError

FORMAT = EETQFormat()
Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("name", ["weight", "qweight"])
def test_weights(tmp_path: Path, name: str) -> None:
    folder = open_folder(write(tmp_path / "e", name))
    layers = FORMAT.layers(folder)
    assert len(layers) == 7
    for path, layer in layers.items():
        tensors, expected = stored(layer.rows, layer.columns, len(path))
        packed = layer.packed(folder)
        np.testing.assert_allclose(packed.dequantize().double().numpy(), expected, rtol=1e-6)
        some = torch.tensor([layer.rows - 1, 3, 3, 0])
        np.testing.assert_allclose(packed.decode_rows(some).double().numpy(), expected[some], rtol=1e-6)
        assert torch.equal(packed.value("weight_scales"), tensors["weight_scales"])


def test_inspect_names_what_is_not_known(tmp_path: Path) -> None:
    summary = FORMAT.summarize(write(tmp_path / "e"))
    assert any("Volta" in note for note in summary.notes)


@pytest.mark.parametrize("shape", [(32, 64), (64, 63)])
def test_shapes_that_do_not_fit(tmp_path: Path, shape: tuple[int, int]) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q}.weight"] = torch.zeros(shape, dtype=torch.int8)

    with pytest.raises(CheckpointError, match=r"q_proj\.weight': expected a multiple of 64 columns"):
        FORMAT.index(edit_tensors(write(tmp_path / "e"), change))


@pytest.mark.parametrize("name", ["weight", "weight_scales"])
def test_tensors_that_are_missing(tmp_path: Path, name: str) -> None:
    """Without scales nothing names the matrix as quantized, and the model has no place for its int8."""

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{Q}.{name}"]

    path = edit_tensors(write(tmp_path / "e"), drop)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight': expected"):
        FORMAT.open_native(path, compute_dtype=torch.float32, device=torch.device("cpu"))
