"""quanto's own layers: every type, and those that hide their values."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.backends.quanto.reference import dequantize
from tests.backends.quanto.samples import qlinear
from zoquant import attach
from zoquant.backends.quanto.live import QuantoBackend
from zoquant.errors import UnsupportedLayoutError
from zoquant.testing import check_backend

pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")

EIGHT = ("qint8", "qfloat8", "qfloat8_e5m2")
FEW = ("qint4", "qint2")
NOT_THERE = {"check_write_reaches_forward": "layers of 4 and 2 bits do not run under torch.inference_mode"}


@pytest.mark.parametrize("columns", [256, 160, 64])
@pytest.mark.parametrize("kind", [*EIGHT, *FEW])
def test_every_type(kind: str, columns: int) -> None:
    """What quanto would save, dequantized by the published layout, is what the backend predicts and quanto computes."""
    layer: Any = qlinear(kind, columns=columns)
    views = attach(nn.ModuleDict({"a": layer}))
    names = ["a.weight._scale"] if kind in EIGHT else ["a.weight._scale", "a.weight._shift"]
    assert [view.name for view in views] == names
    views.add(1, 0.25, "rademacher")
    views.write()
    state = {f"a.{name}": value for name, value in layer.state_dict().items()}
    expected = torch.from_numpy(dequantize(state, "a", kind.removesuffix("_e4m3fn"), columns))
    torch.testing.assert_close(QuantoBackend().dequantize(layer).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.weight.dequantize().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [*EIGHT, *FEW])
def test_conforms(kind: str, dtype: torch.dtype) -> None:
    """Groups of 64 columns, so that no kernel with an order of its own takes the layer."""
    failures = NOT_THERE if kind in FEW else None
    check_backend(lambda: qlinear(kind, columns=64, dtype=dtype), expected_failures=failures, steps=20)


def test_a_kernel_of_its_own_is_refused() -> None:
    layer: Any = qlinear("qint4", columns=256, dtype=torch.bfloat16)
    assert type(layer.weight).__name__ == "TinyGemmWeightQBitsTensor"
    with pytest.raises(UnsupportedLayoutError) as caught:
        attach(nn.ModuleDict({"a": layer}))
    assert str(caught.value).startswith(
        "a (quanto): the kernel of TinyGemmWeightQBitsTensor keeps scale and shift in an"
    )
    assert "float32, or load it with runtime='native'" in str(caught.value)


def test_quantized_activations_are_refused() -> None:
    with pytest.raises(UnsupportedLayoutError, match=r"a \(quanto\): QLinear quantizes activations by scales"):
        attach(nn.ModuleDict({"a": qlinear(activations="qint8")}))


def test_a_layer_that_is_not_frozen() -> None:
    from optimum.quanto import quantize

    model = nn.Sequential(nn.Linear(64, 8))
    quantize(model, weights="qint8")
    with pytest.raises(
        UnsupportedLayoutError, match=r"0 \(quanto\): QLinear is not frozen\. Call optimum\.quanto\.freeze"
    ):
        attach(model)
