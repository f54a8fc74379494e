"""What a package with a format of its own tests: the kit, and one whole round."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import zoquant


def matrix(seed: int) -> dict[str, Tensor]:
    """Return codes and scale of a layer [8 -> 8]."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (8, 8), generator=generator, dtype=torch.int8)
    return {"codes": codes, "scale": (torch.rand(8, 1, generator=generator) * 0.01 + 0.005).half()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Write a checkpoint of two layers."""
    tensors = {f"{layer}.{name}": value for n, layer in enumerate("ab") for name, value in matrix(n).items()}
    save_file(tensors, tmp_path / "model.rows", {"format": "row-int8"})
    return tmp_path / "model.rows"


def test_it_is_found_without_an_import() -> None:
    """The class and the format are known by name before anything of the package is imported."""
    assert zoquant.list_backends()["row_int8.RowLinear"].package == "zoquant-row-int8 1.0"
    assert zoquant.list_formats()["row-int8"].target == "row_int8:RowFormat"
    assert "row_int8" not in sys.modules


def test_backend() -> None:
    """The live layer keeps every law."""
    from row_int8 import RowLinear

    zoquant.testing.check_backend(lambda: RowLinear(**matrix(0)), steps=100)


def test_format(checkpoint: Path) -> None:
    """The file keeps every law."""
    zoquant.testing.check_format(checkpoint)


def test_damaged_file(checkpoint: Path) -> None:
    """A scale of another shape is named."""
    save_file({"a.codes": matrix(0)["codes"], "a.scale": torch.ones(4, 1).half()}, checkpoint, {"format": "row-int8"})
    with pytest.raises(zoquant.errors.CheckpointError, match=r"'a\.scale': expected \[8, 1\]"):
        zoquant.load(checkpoint)


def test_train_export_reload(checkpoint: Path, tmp_path: Path) -> None:
    """What the package's own layers learned is in the exported file, for zoquant's layers too."""
    model, _ = zoquant.load(checkpoint, runtime="vendor")
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))

    def loss() -> Tensor:
        return (model(x) - x).square().mean()

    views = zoquant.attach(model)
    before, optimizer = float(loss()), zoquant.ZOSGD(views, lr=0.02, eps=0.02, clip=1.0)
    for _ in range(200):
        optimizer.step(loss)
    assert float(loss()) < 0.9 * before
    zoquant.save_delta(tmp_path / "delta.safetensors", views)
    tuned = zoquant.export(checkpoint, delta=tmp_path / "delta.safetensors", out=tmp_path / "tuned.rows")
    for runtime in ("native", "vendor"):
        reloaded, _ = zoquant.load(tuned, runtime=runtime, compute_dtype=torch.float32)
        torch.testing.assert_close(reloaded(x), model(x))
