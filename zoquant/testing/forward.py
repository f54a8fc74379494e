"""Laws 1 and 4: what is written reaches the forward, what is read is what the file says."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from zoquant.protocol import ROLES
from zoquant.testing.case import BackendCase, LayerCase, opened, other_values, values_of
from zoquant.testing.results import ConformanceError
from zoquant.testing.tensors import same_bits

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


def check_views_are_well_formed(case: BackendCase) -> None:
    """Names are unique, roles exist, values are floating point of at most 32 bits, shape and device are read()'s."""
    for layer in case.layers():
        names = [view.name for view in layer.views]
        if not names or len(set(names)) < len(names):
            raise ConformanceError(f"{layer.path} ({layer.backend.name}): expected views of different names: {names}.")
        for view in layer.views:
            what, values = layer.name(view), view.read()
            if view.role not in ROLES:
                raise ConformanceError(f"{what}: role is {view.role!r}, expected one of {', '.join(ROLES)}.")
            if not view.dtype.is_floating_point or view.dtype.itemsize > 4:
                raise ConformanceError(f"{what}: dtype is {view.dtype}, expected floating point of at most 32 bits.")
            got = (values.dtype, tuple(values.shape), values.device)
            expected = (torch.float32, tuple(view.shape), view.device)
            if got != expected:
                raise ConformanceError(f"{what}: read() returned {got}, expected {expected}.")


def check_read_returns_what_was_written(case: BackendCase) -> None:
    """read() returns a copy of what write() stored, cast to the view's dtype; write() keeps no hold of its argument."""
    for number, layer in enumerate(case.layers()):
        for index in range(len(layer.views)):
            fresh = case.layers()[number]
            view = fresh.views[index]
            expected = other_values(view.read().clone()).to(view.dtype).float()
            argument = expected.clone()
            view.write(argument)
            argument.fill_(7.0)
            view.read().fill_(9.0)
            if not same_bits(view.read(), expected):
                raise ConformanceError(
                    f"{fresh.name(view)}: read() is not what was written before. Store a copy of the argument cast to "
                    "dtype, and return a copy."
                )
            if view.live is not None and not same_bits(view.live.float().reshape(view.shape), expected):
                raise ConformanceError(f"{fresh.name(view)}: live does not hold what was written. Return live=None.")


def check_views_are_independent(case: BackendCase) -> None:
    """A write to one view leaves all others of the model as they were."""
    for number, layer in enumerate(case.layers()):
        for index in range(len(layer.views)):
            layers = case.layers()
            view = layers[number].views[index]
            others = [(each.name(v), v, v.read().clone()) for each in layers for v in each.views if v is not view]
            view.write(other_values(view.read().clone()))
            for name, other, before in others:
                if not same_bits(other.read(), before):
                    raise ConformanceError(f"{layers[number].name(view)}: a write to it changed {name}.")


def check_forward_agrees_with_dequantize(case: BackendCase) -> None:
    """The output is that of the dequantized weight, before any write."""
    for layer in case.layers():
        y = layer.output()
        weight = layer.backend.dequantize(layer.module)
        if weight.dtype != torch.float32 or weight.dim() != 2:
            raise ConformanceError(
                f"{layer.path} ({layer.backend.name}): dequantize() returned {weight.dtype} of shape "
                f"{tuple(weight.shape)}, expected float32 [out_features, in_features]."
            )
        expected = _product(layer, weight)
        _compare(layer, "the output", y.float(), expected, expected, y.dtype)


def check_write_reaches_forward(case: BackendCase) -> None:
    """After a first forward in either mode, a write moves the output as dequantize predicts, and back."""
    for mode, context in _MODES.items():
        for number, layer in enumerate(case.layers()):
            for index in range(len(layer.views)):
                fresh = case.layers()[number]
                with context():
                    fresh.output()
                _check_write(fresh, index, mode, context)


def check_forward_keeps_order(case: BackendCase) -> None:
    """The first forward changes no view: neither those opened before it, nor those opened after it."""
    model = case.model()
    for before in opened(model):
        expected = values_of(before.views)
        before.output()
        (after,) = (each for each in opened(model) if each.path == before.path)
        for when, views in (("opened before", before.views), ("opened after", after.views)):
            got = values_of(views)
            if got.keys() != expected.keys() or not all(same_bits(got[name], expected[name]) for name in expected):
                raise ConformanceError(
                    f"{before.path} ({before.backend.name}): views {when} the first forward read other values or "
                    f"another order than before it: {', '.join(got)}. Undo the kernel's permutation in read() and "
                    "write()."
                )


def _check_write(
    layer: LayerCase, index: int, mode: str, context: Callable[[], AbstractContextManager[object]]
) -> None:
    view, old = layer.views[index], values_of(layer.views)
    with context():
        y0 = layer.output()
    w0 = layer.backend.dequantize(layer.module).clone()
    p0 = _product(layer, w0)
    view.write(other_values(old[view.name]))
    with context():
        y1 = layer.output()
    w1 = layer.backend.dequantize(layer.module)
    p1 = _product(layer, w1)
    if not w1.any() and not w0.any():
        return
    if torch.equal(p0, p1) or torch.equal(y0, y1):
        what = "dequantize()" if torch.equal(p0, p1) else "the output"
        raise ConformanceError(
            f"{layer.name(view)}: {what} did not change after a write (first forward under {mode}). A cache or a "
            "private copy is in use: refresh it in write(), or refuse the kernel in open()."
        )
    what, scale = f"the change of the output after a write to {view.name}", torch.maximum(p0.abs(), p1.abs())
    _compare(layer, what, y1.float() - y0.float(), p1 - p0, scale, y0.dtype)
    for each in layer.views:
        each.write(old[each.name])
    with context():
        y2 = layer.output()
    if not same_bits(y2, y0):
        raise ConformanceError(f"{layer.name(view)}: the output is another after the old values were written back.")


def _product(layer: LayerCase, weight: Tensor) -> Tensor:
    y = layer.x.float() @ weight.t() if layer.x.is_floating_point() else weight[layer.x]
    bias = getattr(layer.module, "bias", None)
    return y + bias.detach().float() if isinstance(bias, Tensor) else y


def _compare(layer: LayerCase, what: str, got: Tensor, expected: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
    error = float((got - expected).norm() / scale.norm().clamp_min(1e-30))
    tolerance = _TOLERANCE.get(dtype, 5e-2)
    if not error <= tolerance:
        raise ConformanceError(
            f"{layer.path} ({layer.backend.name}): {what} is {error:.1e} away from what dequantize() predicts, "
            f"expected at most {tolerance:.0e} in {dtype}."
        )
