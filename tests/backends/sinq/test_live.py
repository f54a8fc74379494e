"""SINQ's own layer: what it would save, dequantized by the published layout, is what it computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.backends.sinq.samples import linear
from tests.checkpoint.folder.llama import write_tensors
from zoquant import attach
from zoquant.backends.sinq.format import SINQFormat
from zoquant.backends.sinq.live import SINQBackend
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import UnsupportedLayoutError
from zoquant.testing import check_backend

pytest.importorskip("sinq", reason="sinq is not installed")

METHODS = ("dual", "sinq", "asinq")


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_native_agrees(tmp_path: Path, bits: int, tiles: bool, method: str) -> None:
    """A layer that sinq made and saved with its own writer, read by zoquant."""
    from sinq.patch_model import BaseSINQHFModel

    layer: Any = linear(bits, tiles=tiles, method=method)
    write_tensors(tmp_path, {"x": torch.zeros(1)}, {"quant_method": "sinq"})
    (tmp_path / "model.safetensors").unlink()
    BaseSINQHFModel.save_weights_safetensors({"a": layer.state_dict()}, str(tmp_path))
    folder = open_folder(tmp_path)
    packed = SINQFormat().layers(folder)["a"].packed(folder)
    expected = SINQBackend().dequantize(layer)
    np.testing.assert_allclose(packed.dequantize().numpy(), expected.numpy(), rtol=2e-3, atol=2e-4)
    views = {
        view.name.removeprefix("a."): view for view in attach(nn.ModuleDict({"a": layer}), roles=("scale", "zero"))
    }
    assert list(views) == [field.name for field in packed.fields]
    assert all(torch.equal(views[name].read(), packed.value(name).float()) for name in views)


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_conformance(method: str, tiles: bool) -> None:
    check_backend(lambda: linear(method=method, tiles=tiles), steps=20)


def test_gemlite_is_refused() -> None:
    layer: Any = linear()
    layer.use_gemlite = True
    with pytest.raises(UnsupportedLayoutError, match="GemLite"):
        attach(nn.ModuleDict({"a": layer}))
