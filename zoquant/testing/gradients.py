"""Law 1 for whoever has a gradient: it is that of the forward, by the input and by every value, or is refused."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.testing.case import BackendCase, LayerCase, attached, opened
from zoquant.testing.results import ConformanceError
from zoquant.views.flat_buffer import SPACES, Space
from zoquant.views.gradients import Gradients
from zoquant.views.model_views import BoundView, Views

_LENGTH = 0.03
"""How far a value moves, in units of itself."""

_TOLERANCE = {torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 6e-2}


def check_gradient_is_that_of_the_forward(case: BackendCase) -> None:
    """Gradients agree with the change of a loss along random directions, or the layer is refused by its name."""
    for space in SPACES:
        model = case.model()
        views = attached(model, coupled=False)
        layers = opened(model)
        weights = [layer.backend.dequantize(layer.module) for layer in layers]
        try:
            deltas = Gradients(model, views, space=space)
        except UnsupportedLayoutError as error:
            if not any(layer.path in str(error) for layer in layers):
                raise ConformanceError(f"a layer without a gradient is not named: {error}") from error
            return
        with deltas:
            for layer, weight in zip(layers, weights, strict=True):
                _check_layer(layer, weight, views, deltas, space)


def _check_layer(layer: LayerCase, weight: Tensor, views: Views, deltas: Gradients, space: Space) -> None:
    """Check one layer; its weight and its input are those from before its tensors depended on deltas."""
    module, x = layer.module, layer.x.clone()
    if x.is_floating_point():
        x.requires_grad_()
    y: Tensor = module(x)
    asked = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.device)

    def loss() -> Tensor:
        out: Tensor = module(x)
        return (out.double() * asked).sum()

    deltas.zero_grad()
    loss().backward()  # type: ignore[no-untyped-call]
    tolerance = _TOLERANCE.get(y.dtype, 6e-2)
    if x.grad is not None:
        expected = asked.float() @ weight
        if not (x.grad.float() - expected).norm() <= tolerance * expected.norm():
            raise ConformanceError(
                f"{layer.path} ({layer.backend.name}): the gradient by the input is not that of the weight."
            )
    for view in views:
        if view.layer is not None and view.layer.module is module:
            _check_view(view, views, deltas.get_parameter(view.name), loss, space, tolerance)


def _check_view(
    view: BoundView, views: Views, delta: nn.Parameter, loss: Callable[[], Tensor], space: Space, tolerance: float
) -> None:
    """Compare the gradient by a view with the change of the loss: the loss is linear in the values of one view."""
    if delta.grad is None:
        raise ConformanceError(f"{view.name} ({view.backend}): the loss depends on the values, but no gradient came.")
    base = view.read().double()
    sign = torch.randint(0, 2, view.shape, generator=torch.Generator().manual_seed(1)).mul_(2).sub_(1).to(base.device)
    unit = torch.ones_like(base) if space == "relative" else base.abs()
    found, values = [], []
    for side in (1.0, -1.0):
        with torch.no_grad():
            delta.copy_(side * _LENGTH * unit * sign)
            found.append(float(loss()))
            values.append(view.read().double())
            delta.zero_()
    moved = values[0] - values[1]
    along = moved if space == "absolute" else torch.where(base == 0, 0.0, moved / base)
    parts = delta.grad.double() * along
    error, scale = abs(found[0] - found[1] - float(parts.sum())), float(parts.norm())
    if not error <= tolerance * max(scale, 1e-6 * abs(found[0])):
        raise ConformanceError(
            f"{view.name} ({view.backend}): in {space} space the loss changed by {found[0] - found[1]:.6g} along a "
            f"random direction, and by its gradient it should by {float(parts.sum()):.6g}."
        )
