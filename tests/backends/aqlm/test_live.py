"""Views of aqlm's own layers; run where aqlm is installed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoquant
from tests.backends.aqlm.samples import aqlm_folder, aqlm_linear
from tests.checkpoint.folder.llama import logits
from zoquant.backends.aqlm.live import AQLMBackend
from zoquant.errors import UnsupportedLayoutError
from zoquant.testing import check_backend
from zoquant.testing.tensors import same_bits

pytest.importorskip("aqlm", reason="aqlm is not installed")

BOTH: Any = ("scale", "codebook")
SHAPES: list[dict[str, Any]] = [
    {"books": 2, "nbits": 8},
    {"books": 1, "nbits": 16},
    {"books": 1, "nbits": 12, "dtype": torch.float16},
    {"books": 8, "nbits": 8, "dtype": torch.bfloat16},
    {"books": 2, "nbits": 8, "height": 2},
    {"books": 2, "nbits": 8, "rows": 16, "columns": 128},
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def test_every_law(shape: dict[str, Any]) -> None:
    check_backend(lambda: aqlm_linear(**shape), steps=50)


@pytest.mark.parametrize("rows", [24, 2])
def test_codes_that_a_forward_turned_around_are_turned_back(rows: int) -> None:
    """With two rows of two groups the turned codes have the shape of the file's."""
    layer: Any = aqlm_linear(rows=rows, columns=16, numba=True)
    before = layer.codes.detach().clone()
    x = AQLMBackend().sample_input(layer)
    expected = x @ AQLMBackend().dequantize(layer).t() + (0 if layer.bias is None else layer.bias)
    layer(x)  # not compared: that kernel's threads add to one vector at once
    assert not same_bits(layer.codes, before)
    views = zoquant.attach(nn.ModuleDict({"a": layer}), roles=BOTH)
    assert [(view.name, view.role) for view in views] == [("a.scales", "scale"), ("a.codebooks", "codebook")]
    assert same_bits(layer.codes, before)
    torch.testing.assert_close(layer(x), expected)
    zoquant.attach(nn.ModuleDict({"a": layer}), roles=BOTH)
    assert same_bits(layer.codes, before)


def test_forwards_are_deterministic() -> None:
    layer = aqlm_linear(books=4, rows=256, columns=512, numba=True)
    zoquant.attach(nn.ModuleDict({"a": layer}))
    x = AQLMBackend().sample_input(layer)
    assert len({layer(x).numpy().tobytes() for _ in range(50)}) == 1


def test_a_layer_without_weights() -> None:
    from aqlm import QuantizedLinear

    layer = QuantizedLinear(16, 24, 8, 1, 2, 8, device="meta")
    with pytest.raises(UnsupportedLayoutError, match="has no weights yet"):
        zoquant.attach(nn.ModuleDict({"a": layer}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    """Native and aqlm agree, before and after; a delta of either applies on the other; aqlm loads the export."""
    path = aqlm_folder(tmp_path, dtype=dtype)
    native, _ = zoquant.load(path, runtime="native", compute_dtype=torch.float32, device="cpu")
    vendor, _ = zoquant.load(path, runtime="vendor", device="cpu")
    rtol, atol = (1e-4, 1e-4) if dtype == torch.float32 else (5e-2, 2e-1)
    torch.testing.assert_close(logits(native), logits(vendor), rtol=rtol, atol=atol)
    views = {name: zoquant.attach(model, roles=BOTH) for name, model in (("native", native), ("vendor", vendor))}
    assert views["native"].fingerprints() == views["vendor"].fingerprints()
    optimizer = zoquant.ZOSGD(views["vendor"], lr=1e-3, eps=1e-2, seed=1)
    for _ in range(5):
        optimizer.step(lambda: logits(vendor).square().mean())
    zoquant.save_delta(tmp_path / "delta.safetensors", views["vendor"])
    zoquant.load_delta(tmp_path / "delta.safetensors", views["native"])
    for key in views["native"].keys:
        assert same_bits(views["native"].theta(key), views["vendor"].theta(key))
    moved = logits(native)
    torch.testing.assert_close(moved, logits(vendor), rtol=rtol, atol=atol)
    out = zoquant.export(path, delta=tmp_path / "delta.safetensors", out=tmp_path / "tuned")
    again, _ = zoquant.load(out, runtime="vendor", device="cpu")
    assert torch.equal(logits(again), logits(vendor))
    zoquant.attach(again, roles=BOTH)
    model: Any = again
    model.save_pretrained(tmp_path / "saved")
    saved, _ = zoquant.load(tmp_path / "saved", runtime="native", compute_dtype=torch.float32, device="cpu")
    assert torch.equal(logits(saved), moved)
