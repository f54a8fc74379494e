"""Choosing between zoquant's layers and a library's."""

import gc
import logging
import time
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoquant
from tests.toy import ToyFormat, toy_model, write_toy
from zoquant.checkpoint.runtime_choice import Comparison, faster
from zoquant.errors import UnsupportedLayoutError

loading = import_module("zoquant.checkpoint.loading")


class WithVendor(ToyFormat):
    """Toy files whose vendor runtime is a model of one toy layer more."""

    name = "toy-vendor"

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        model, tokenizer = self.open_native(path, compute_dtype=compute_dtype, device=device)
        model.add_module("marker", nn.Identity())
        return model, tokenizer


def test_the_faster_layer_wins() -> None:
    native, vendor = toy_model(), toy_model()
    native.layers["l0"].register_forward_pre_hook(lambda *_: time.sleep(5e-3))
    comparison = faster(native, vendor)
    assert comparison.vendor_wins
    assert comparison.layer == "layers.l0"
    assert comparison.why.startswith("its library's layers: layers.l0 took ")
    assert not faster(vendor, native).vendor_wins


def test_nothing_in_common() -> None:
    with pytest.raises(UnsupportedLayoutError, match=r"no quantized layer is there in both runtimes"):
        faster(toy_model(), nn.Linear(2, 2))


def test_runtimes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_toy(tmp_path / "a.toy", toy_model())
    zoquant.register(format=WithVendor())
    try:
        with caplog.at_level(logging.INFO, logger="zoquant"):
            assert not hasattr(zoquant.load(path)[0], "marker")
            assert hasattr(zoquant.load(path, runtime="vendor")[0], "marker")
    finally:
        zoquant.unregister("toy-vendor")
    auto, vendor = (record.getMessage() for record in caplog.records)
    assert auto.endswith("computed by zoquant's own layers, the default on a CPU")
    assert vendor.endswith("computed by its library's layers, as asked for")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of\nmemory"), RuntimeError("no kernel image")])
def test_a_vendor_that_fails_leaves_the_native_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """On the meta device, which is no CPU, so that the choice is made here too."""
    vendors: list[weakref.ref[nn.Module]] = []

    def fails(native: nn.Module, vendor: nn.Module) -> None:
        vendors.append(weakref.ref(vendor))
        raise error.with_traceback(None)

    monkeypatch.setattr(loading, "faster", fails)
    path, native = write_toy(tmp_path / "a.toy", toy_model()), (toy_model(), None)
    loaded, why = loading._choose(WithVendor(), path, torch.float32, torch.device("meta"), native)
    assert loaded is native
    assert why == f"zoquant's own layers: {' '.join(str(error).split())}"
    error.with_traceback(None)
    gc.collect()
    assert vendors[0]() is None


@pytest.mark.parametrize("chosen", [torch.float32, torch.bfloat16])
def test_a_dtype_of_activations_chooses_the_layers_that_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, chosen: torch.dtype
) -> None:
    """On the meta device, where the vendor would win."""
    monkeypatch.setattr(loading, "faster", lambda native, vendor: Comparison("a", native=2.0, vendor=1.0))
    monkeypatch.setattr(loading, "pass_activations", lambda model, dtype: setattr(model, "passed", dtype))
    monkeypatch.setattr(WithVendor, "open_native", lambda *_, **__: (toy_model(), None))
    zoquant.register(format=WithVendor())
    path = write_toy(tmp_path / "a.toy", toy_model())
    try:
        assert hasattr(zoquant.load(path, device="meta")[0], "marker")
        with caplog.at_level(logging.INFO, logger="zoquant"):
            model, _ = zoquant.load(path, device="meta", activation_dtype=chosen)
    finally:
        zoquant.unregister("toy-vendor")
    assert not hasattr(model, "marker")
    assert getattr(model, "passed", torch.float32) == chosen
    assert caplog.messages[-1].endswith(
        "zoquant's own layers: activation_dtype is given, and a library's layers have none"
    )


def test_refusals(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "a.toy", toy_model())
    zoquant.register(format=ToyFormat())
    try:
        with pytest.raises(UnsupportedLayoutError, match=r"the format toy has no vendor runtime here"):
            zoquant.load(path, runtime="vendor")
        with pytest.raises(ValueError, match=r"runtime is 'fast', expected 'auto', 'native' or 'vendor'"):
            zoquant.load(path, runtime="fast")  # type: ignore[arg-type]
        for given, said in ((torch.int8, "torch.int8"), (torch.float8_e5m2, "torch.float8_e5m2"), ("half", "'half'")):
            with pytest.raises(ValueError, match=rf"load: compute_dtype is {said}, expected torch\.float32, "):
                zoquant.load(path, compute_dtype=given)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match=rf"load: activation_dtype is {said}, expected torch\.float32, "):
                zoquant.load(path, activation_dtype=given)  # type: ignore[arg-type]
    finally:
        zoquant.unregister("toy")
