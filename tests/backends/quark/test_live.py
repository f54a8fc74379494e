"""Quark's own layers: the same weights as the published layout gives, every kind of view, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.backends.quark.samples import KINDS, ORDERED, linear
from zoquant import attach
from zoquant.backends.quark.live import QuarkBackend
from zoquant.errors import UnsupportedLayoutError
from zoquant.testing import check_backend

pytest.importorskip("onnx", reason="onnx, which Quark imports, is not installed")
pytest.importorskip("quark", reason="amd-quark is not installed")

TRAINED = [name for name in [*KINDS, *ORDERED] if not name.startswith("mx")]


@pytest.mark.parametrize("name", [*KINDS, *ORDERED])
def test_quark_agrees_with_the_reference(name: str) -> None:
    _, make = {**KINDS, **ORDERED}[name]
    layer: Any = linear(name)
    _, expected = make(layer.out_features, layer.in_features, 3)
    torch.testing.assert_close(
        QuarkBackend().dequantize(layer).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", TRAINED)
def test_views(name: str) -> None:
    _, make = {**KINDS, **ORDERED}[name]
    (view,) = attach(nn.ModuleDict({"a": linear(name)}))
    local = view.name.removeprefix("a.")
    assert local == ("weight_scale_2" if name == "nvfp4" else "weight_scale")
    assert torch.equal(view.read(), make(96, 64, 3)[0][local].float())


@pytest.mark.parametrize("name", ["int4-per_group", "int8-per_channel", "fp8-block", "nvfp4"])
def test_conformance(name: str) -> None:
    check_backend(lambda: linear(name), steps=20)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp6-e2m3"])
def test_powers_of_two_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedLayoutError, match="powers of two"):
        attach(nn.ModuleDict({"a": linear(name)}))


def test_activations_are_refused() -> None:
    layer: Any = linear()
    layer.input_quantizer = layer.weight_quantizer
    with pytest.raises(UnsupportedLayoutError, match="quantizes activations"):
        attach(nn.ModuleDict({"a": layer}))
