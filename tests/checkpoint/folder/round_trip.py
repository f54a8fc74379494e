"""The whole way of a checkpoint folder, on both runtimes, with the format's own library."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoquant
from tests.checkpoint.folder.llama import logits
from zoquant.protocol import Span
from zoquant.record.delta import load_delta, save_delta
from zoquant.registry import format_of
from zoquant.testing.format_case import span_bytes
from zoquant.testing.tensors import same_bits
from zoquant.views.model_views import Views

IDS = torch.randint(0, 48, (2, 12), generator=torch.Generator().manual_seed(2))
STEPS = 20


def opened(path: Path, runtime: Any) -> tuple[nn.Module, Views]:
    """Load a checkpoint on one runtime and attach to its scales."""
    model, _ = zoquant.load(path, runtime=runtime, compute_dtype=torch.float32, device="cpu")
    views = zoquant.attach(model)
    assert {view.backend for view in views} == {"native" if runtime == "native" else format_of(path).name}
    return model, views


def trained(path: Path, runtime: Any, delta: Path) -> tuple[nn.Module, list[float]]:
    """Train for some steps to predict fixed tokens, write the delta; return the model and the losses."""
    model: Any
    model, views = opened(path, runtime)
    optimizer = zoquant.ZOSGD(views, lr=2e-2, eps=1e-2, seed=1)

    def loss() -> float:
        with torch.no_grad():
            return float(model(input_ids=IDS, labels=IDS).loss)

    losses = [optimizer.step(loss).loss for _ in range(STEPS)]
    save_delta(delta, views)
    return model, losses


def check_round_trip(path: Path, folder: Path, *, tolerance: float, reload: Callable[[Path], Any]) -> None:
    """Train on each runtime, export, reload; every law of the way.

    Args:
        path: the checkpoint.
        folder: where to write.
        tolerance: how far the library's logits may be from zoquant's, relative to their norm.
        reload: loads a folder with the library alone, or with transformers.
    """
    index = format_of(path).index(path)
    for runtime, other in (("native", "vendor"), ("vendor", "native")):
        delta, out = folder / f"{runtime}.safetensors", folder / runtime
        model, losses = trained(path, runtime, delta)
        assert min(losses[-5:]) < losses[0], losses
        tuned = logits(model)
        zoquant.export(path, delta=delta, out=out)
        _check_bytes(path, out, index)
        assert _distance(logits(opened(out, runtime)[0]), tuned) <= 1e-6
        assert _distance(logits(reload(out)), tuned) <= tolerance
        second, views = opened(path, other)
        load_delta(delta, views)
        assert _distance(logits(second), tuned) <= tolerance
        _check_same_values(views, out, other)
    _check_zero_delta(path, folder)


def _check_bytes(path: Path, out: Path, index: Mapping[str, Span]) -> None:
    """Only bytes of scales differ: codes and all else are the same."""
    for file in sorted(each for each in path.iterdir() if each.is_file()):
        before, after = _bytes(file), _bytes(out / file.name)
        assert before.shape == after.shape
        allowed = torch.zeros(len(before), dtype=torch.bool)
        for span in index.values():
            if span.file == file.name and span.role == "scale":
                allowed |= span_bytes(len(before), span)
        assert torch.equal(before[~allowed], after[~allowed]), file.name
        assert not allowed.any() or not torch.equal(before, after)


def _check_same_values(views: Views, out: Path, runtime: Any) -> None:
    """A delta that was loaded gives the very values that the export wrote."""
    exported = {view.name: view.read() for view in opened(out, runtime)[1]}
    assert exported.keys() == set(views.keys)
    assert all(same_bits(view.read(), exported[view.name]) for view in views)


def _check_zero_delta(path: Path, folder: Path) -> None:
    _, views = opened(path, "native")
    save_delta(folder / "zero.safetensors", views)
    zoquant.export(path, delta=folder / "zero.safetensors", out=folder / "zero")
    for file in sorted(each for each in path.iterdir() if each.is_file()):
        assert file.read_bytes() == (folder / "zero" / file.name).read_bytes()


def _bytes(file: Path) -> Tensor:
    return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)


def _distance(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())
