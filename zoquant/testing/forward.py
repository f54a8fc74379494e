"""Laws 1 and 4: what is written reaches the forward, what is read is what the file says."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import ROLES, ScaleView
from zoquant.testing.case import BackendCase, LayerCase, attached, opened, other_values, values_of
from zoquant.testing.results import ConformanceError
from zoquant.testing.tensors import same_bits
from zoquant.views.trial.agreement import COARSEST, TOLERANCE, disagreement, product
from zoquant.views.trial.grids import check_grids

_MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


def check_views_are_well_formed(case: BackendCase) -> None:
    """Names are unique, roles exist, values are floating point of at most 32 bits, shape and device are read()'s."""
    for layer in case.layers():
        names = [view.name for view in layer.views]
        if not names or len(set(names)) < len(names):
            raise ConformanceError(
                f"{layer.path} ({layer.backend.name}): open() returned views called {names}, expected different names."
            )
        for view in layer.views:
            what, values = layer.name(view), view.read()
            if view.role not in ROLES:
                raise ConformanceError(f"{what}: role is {view.role!r}, expected one of {', '.join(ROLES)}.")
            if not view.dtype.is_floating_point or view.dtype.itemsize > 4:
                raise ConformanceError(f"{what}: dtype is {view.dtype}, expected floating point of at most 32 bits.")
            got = (values.dtype, tuple(values.shape), values.device)
            expected = (torch.float32, tuple(view.shape), view.device)
            if got != expected:
                raise ConformanceError(f"{what}: read() returned {got}, and the view says {expected}.")


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
        expected = product(layer.module, weight, layer.x)
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


def check_training_reaches_forward(case: BackendCase) -> None:
    """What training writes, into live storage and all values at once, moves the output as dequantize predicts."""
    for number, layer in enumerate(case.layers()):
        for index, view in enumerate(layer.views):
            model = case.model()
            fresh = opened(model)[number]
            fresh.output()
            views = attached(model, coupled=False)
            key = f"{fresh.path}.{view.name}"
            if key in views.keys:
                move = partial(views.set_delta, {key: torch.full(view.shape, 0.25)})
                _check_move(fresh, fresh.views[index], "training wrote past write(), where live is", move, views.reset)


def check_grids_scale_the_weights(case: BackendCase) -> None:
    """Rows and columns of the grids, all values of them scaled together, scale the rows and columns of dequantize."""
    for layer in case.layers():
        try:
            check_grids(layer.attached, layer.views, thorough=True)
        except UnsupportedLayoutError as error:
            raise ConformanceError(str(error)) from error


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

    def back() -> None:
        for each in layer.views:
            layer.write(each, old[each.name])

    move = partial(layer.write, view, other_values(old[view.name]))
    _check_move(layer, view, f"a write (first forward under {mode})", move, back, context)


def _check_move(
    layer: LayerCase,
    view: ScaleView,
    when: str,
    move: Callable[[], object],
    back: Callable[[], object],
    context: Callable[[], AbstractContextManager[object]] = torch.no_grad,
) -> None:
    """Move a view and go back; compare the output with `dequantize`."""
    old = view.read().clone()
    with context():
        y0 = layer.output()
    w0 = layer.backend.dequantize(layer.module).clone()
    p0 = product(layer.module, w0, layer.x)
    move()
    with context():
        y1 = layer.output()
    w1 = layer.backend.dequantize(layer.module)
    if not (w0.any() or w1.any()) or same_bits(view.read(), old):
        return
    p1 = product(layer.module, w1, layer.x)
    if torch.equal(w0, w1) and torch.equal(y0, y1):
        raise ConformanceError(
            f"{layer.name(view)}: neither dequantize() nor the output changed after {when}. open() has to return views "
            "of the layer's own tensors, not of copies."
        )
    if torch.equal(p0, p1) or torch.equal(y0, y1):
        what = "dequantize()" if torch.equal(p0, p1) else "the output"
        raise ConformanceError(
            f"{layer.name(view)}: {what} did not change after {when}. A cache or a private copy is in use: give the "
            "backend refresh(module), let live be None, or refuse the kernel in open()."
        )
    what, scale = f"the change of the output with {view.name} after {when}", torch.maximum(p0.abs(), p1.abs())
    _compare(layer, what, y1.float() - y0.float(), p1 - p0, scale, y0.dtype)
    back()
    with context():
        y2 = layer.output()
    if not same_bits(y2, y0):
        raise ConformanceError(f"{layer.name(view)}: the output is another after the old values were written back.")


def _compare(layer: LayerCase, what: str, got: Tensor, expected: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE.get(dtype, COARSEST)
    if how := disagreement(got, expected, tolerance, scale=scale):
        raise ConformanceError(
            f"{layer.path} ({layer.backend.name}): {what} is {how} what dequantize() predicts, expected within "
            f"{tolerance:g} in {dtype}."
        )
