"""HQQ: every bit width, axis, group size and dtype; what hqq leaves behind, and what cannot be trained."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.backends.hqq.samples import hqq_linear
from zoquant import ZOSGD, attach
from zoquant.backends.hqq.live import HQQBackend
from zoquant.errors import UnsupportedLayoutError
from zoquant.kernels.noise.definition import Noise
from zoquant.optim.probes.probe import Probe
from zoquant.optim.probes.probed_layers import ProbedLayers
from zoquant.record.rows_and_columns import RowsAndColumnsMover
from zoquant.record.rules import SGD
from zoquant.testing.tensors import same_bits

pytest.importorskip("hqq", reason="hqq is not installed")

BOTH: Any = ("scale", "zero")


def unpacked(layer: Any) -> Tensor:
    """Return the codes, one an element of the weight, in the shape that scale and zero broadcast over."""
    meta = layer.meta
    packed = layer.W_q.view(meta["unpack_view_dtype"]) if meta["view_as_float"] else layer.W_q
    from hqq.core.quantize import Quantizer

    codes: Tensor = Quantizer.unpack[meta["packing"]](packed, dtype=torch.float32)
    rows = meta["group_size"] if meta["axis"] == 0 else meta["shape"].numel() // meta["group_size"]
    return codes[:rows] if meta["nbits"] == 3 else codes


def code_bytes(layer: Any) -> Tensor:
    codes: Tensor = layer.W_q.detach().contiguous().view(-1).view(torch.uint8).clone()
    return codes


@pytest.mark.parametrize("view_as_float", [False, True])
@pytest.mark.parametrize("group_size", [8, 16, None])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("nbits", [8, 4, 3, 2, 1])
def test_every_layout(nbits: int, axis: int, group_size: int | None, view_as_float: bool) -> None:
    layer: Any = hqq_linear(nbits, axis=axis, group_size=group_size, view_as_float=view_as_float, bias=True)
    codes, backend = code_bytes(layer), HQQBackend()
    scale, zero = layer.meta["scale"].clone(), layer.meta["zero"].clone()
    views = attach(nn.ModuleDict({"a": layer}), roles=BOTH)
    assert [(view.name, view.role) for view in views] == [("a.scale", "scale"), ("a.zero", "zero")]
    groups = 16 * 24 // layer.meta["group_size"]
    assert {view.shape for view in views} == {(groups, 1) if axis == 1 else (1, groups)}
    assert same_bits(views[0].read(), scale)
    assert same_bits(views[1].read(), zero)
    views[0].write(scale * 1.25)
    views[1].write(zero + 0.5)
    expected = ((unpacked(layer) - (zero + 0.5)) * (scale * 1.25)).reshape(24, 16)
    torch.testing.assert_close(backend.dequantize(layer), expected)
    x = backend.sample_input(layer)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ expected.t() + layer.bias)
    assert torch.equal(code_bytes(layer), codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_training_keeps_codes_and_restores(dtype: torch.dtype) -> None:
    layer: Any = hqq_linear(dtype=dtype)
    codes = code_bytes(layer)
    views = attach(nn.ModuleDict({"a": layer}), roles=BOTH)
    before = {view.name: view.read() for view in views}
    assert {view.dtype for view in views} == {dtype}
    x = HQQBackend().sample_input(layer)
    assert x.dtype == dtype
    optimizer = ZOSGD(views, lr=5e-2)
    results = [optimizer.step(lambda: (layer(x).float() - 1).square().mean()) for _ in range(20)]
    assert results[0].moved > 0.9
    assert not same_bits(views[0].read(), before["a.scale"])
    assert torch.equal(code_bytes(layer), codes)
    views.reset()
    assert all(same_bits(view.read(), before[view.name]) for view in views)


def test_members_made_under_inference_mode_are_replaced() -> None:
    with torch.inference_mode():
        layer: Any = hqq_linear()
        assert layer.meta["zero"].is_inference()
        old = layer.meta["zero"].clone()
    views = attach(nn.ModuleDict({"a": layer}), roles=BOTH)
    assert not layer.meta["zero"].is_inference()
    assert not layer.meta["scale"].is_inference()
    assert same_bits(views[1].read(), old.clone())
    views.write(seed=1, eps=0.1)
    views.write()
    assert same_bits(views[1].read(), old.clone())


def test_a_replaced_member_is_followed() -> None:
    layer: Any = hqq_linear()
    views = attach(nn.ModuleDict({"a": layer}))
    layer.meta["scale"] = layer.meta["scale"].clone()
    views.add(1, 0.25, "rademacher")
    views.write()
    assert same_bits(layer.meta["scale"], views.theta("a.scale"))


@pytest.fixture
def default_kernel() -> Iterator[Any]:
    from hqq.core.quantize import HQQBackend as Kernel
    from hqq.core.quantize import HQQLinear

    yield Kernel
    HQQLinear.set_backend(Kernel.PYTORCH)


@pytest.mark.parametrize("kernel", ["PYTORCH", "PYTORCH_FORWARD"])
def test_eager_kernels(default_kernel: Any, kernel: str) -> None:
    from hqq.core.quantize import HQQLinear

    HQQLinear.set_backend(default_kernel[kernel])
    assert len(attach(nn.ModuleDict({"a": hqq_linear()}), roles=BOTH)) == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"zero_scale": None},
            "its scale and zero point are packed into 'zero_scale' and offloaded. Load the model wit",
        ),
    ],
)
def test_layouts_that_hide_their_values(change: dict[str, Any], text: str) -> None:
    layer: Any = hqq_linear()
    layer.meta.update(change)
    with pytest.raises(UnsupportedLayoutError) as caught:
        attach(nn.ModuleDict({"a": layer}))
    assert str(caught.value).startswith(f"a (hqq): HQQLinear cannot be trained as it is: {text}")


@pytest.mark.parametrize("scale", [{"group_size": 16}, None])
@pytest.mark.parametrize("zero", [{"group_size": None, "channel_wise": False}, {"group_size": 8, "axis": 1}, None])
def test_scale_and_zero_of_two_levels(scale: dict[str, Any] | None, zero: dict[str, Any] | None) -> None:
    """hqq still reads what its older versions wrote, and its quantizer still makes it when asked directly."""
    layer: Any = hqq_linear(group_size=8)
    settings = layer.quant_config["weight_quant_params"]
    eight: dict[str, Any] = {"nbits": 8, "optimize": False}
    weight = layer.dequantize().float()
    del layer.W_q
    with torch.inference_mode():
        layer.quantize(weight, settings, scale and {**eight, **scale}, zero and {**eight, **zero})
    views = attach(nn.ModuleDict({"a": layer}), roles=BOTH)
    names = {"scale": ("meta_scale.scale", "meta_scale.zero") if scale else ("scale",)}
    names["zero"] = ("meta_zero.scale", "meta_zero.zero") if zero else ("zero",)
    assert views.keys == tuple(f"a.{name}" for name in (*names["scale"], *names["zero"]))
    roles = {view.name: view.role for view in views}
    assert [key for key, role in roles.items() if role == "scale"] == [f"a.{names['scale'][0]}"]
    before = HQQBackend().dequantize(layer)
    key = f"a.{names['scale'][0]}"
    delta = {key: torch.full(views.base(key).shape, 0.25)}
    views.set_delta(delta)
    assert not torch.allclose(HQQBackend().dequantize(layer), before)
    views.reset()
    assert same_bits(HQQBackend().dequantize(layer), before)


def test_a_layer_without_weights() -> None:
    from hqq.core.quantize import HQQLinear

    with pytest.raises(
        UnsupportedLayoutError, match=r"it is not initialized\. Load the weights, or call initialize\(\)"
    ):
        attach(nn.ModuleDict({"a": HQQLinear(None, None, initialize=False)}))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("nbits", [8, 4, 3])
def test_a_batched_probe_is_what_written_scales_give(nbits: int, axis: int) -> None:
    layer: Any = hqq_linear(nbits, axis=axis, group_size=8, bias=True)
    views = attach(nn.ModuleDict({"a": layer}))
    if axis == 0:  # 48 groups for 16 columns: three rows of the grid
        assert views[0].shape == (1, 48)
    mover, x = RowsAndColumnsMover(views, Noise(), SGD()), HQQBackend().sample_input(layer)[:1]
    with ProbedLayers([mover], [Probe(7, (0.1,)), Probe(None, (0.0,))]), torch.no_grad():
        probed, plain = layer(x.expand(2, -1))
    u = mover.vectors[0].delta
    u.add_(mover.vectors[0].source_of(Noise()).draw(7, 0, torch.empty_like(u)), alpha=0.1)
    mover.advance([])
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0], plain)
        views.write()
        torch.testing.assert_close(layer(x)[0], probed)
