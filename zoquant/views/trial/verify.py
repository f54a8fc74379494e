"""The check of `attach`: does a value that is written change the output of its layer as predicted?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import ScaleView, Uncached
from zoquant.views.layout import write_view
from zoquant.views.model_views import AttachedLayer
from zoquant.views.trial.agreement import COARSEST, TOLERANCE, disagreement, product
from zoquant.views.trial.grids import check_grids

_FACTOR = 1.5
_INSTEAD_OF_ZERO = 0.5


def verify_layer(layer: AttachedLayer, views: Sequence[ScaleView], checked: Sequence[ScaleView]) -> None:
    """Write views of a layer as training does, run it, compare, and write the old values back; then try its grids.

    A layer whose backend says that nothing is cached is left alone.

    Args:
        layer: the layer.
        views: all of its views, with their local names.
        checked: those that are to be written.

    Raises:
        UnsupportedLayoutError: the layer's output does not agree with `dequantize`, or did not follow a write.
    """
    if isinstance(layer.backend, Uncached) and not layer.backend.cached:
        return
    x = layer.backend.sample_input(layer.module)
    before = _agreed_output(layer, x, "before any write")
    for view in checked:
        old = view.read()
        moved = torch.where(old == 0, _INSTEAD_OF_ZERO, old * _FACTOR)
        try:
            write_view(view, moved)
            layer.refresh()
            _followed(layer, view, x, before)
        except UnsupportedLayoutError:
            view.write(moved)
            layer.refresh()
            if _follows(layer, view, x, before):
                raise UnsupportedLayoutError(_passed_by(layer, view)) from None
            raise
        finally:
            view.write(old)
            layer.refresh()
    check_grids(layer, views)


def _followed(layer: AttachedLayer, view: ScaleView, x: Tensor, before: Tensor) -> None:
    """Refuse a layer whose output is not that of the values that were written."""
    after = _agreed_output(layer, x, f"after a write to {view.name!r}")
    if torch.equal(after, before) and layer.backend.dequantize(layer.module).any():
        raise UnsupportedLayoutError(
            f"{_name(layer)}.{view.name} ({layer.backend.name}): the output did not change when the values were "
            f"multiplied by {_FACTOR}. The kernel of {type(layer.module).__name__} keeps a copy of its own: load the "
            "model with the library's plain torch kernel, or with zoquant.load(..., runtime='native')."
        )


def _follows(layer: AttachedLayer, view: ScaleView, x: Tensor, before: Tensor) -> bool:
    try:
        _followed(layer, view, x, before)
    except UnsupportedLayoutError:
        return False
    return True


def _passed_by(layer: AttachedLayer, view: ScaleView) -> str:
    kind = type(view).__name__
    return (
        f"{_name(layer)}.{view.name} ({layer.backend.name}): live is the storage, so training writes there and never "
        f"calls write() of {kind}, which does more than that, and the output does not follow. Give the backend "
        f"refresh(module), which is called after every write, or let live of {kind} be None."
    )


def _agreed_output(layer: AttachedLayer, x: Tensor, when: str) -> Tensor:
    """Return the module's output, after comparing it with the dequantized weight's."""
    module = layer.module
    with torch.no_grad():
        y: Tensor = module(x)
        bound = TOLERANCE.get(y.dtype, COARSEST)
        how = disagreement(y, product(module, layer.backend.dequantize(module), x), bound)
    if how:
        raise UnsupportedLayoutError(
            f"{_name(layer)} ({layer.backend.name}): {when} the output of {type(module).__name__} is {how} what its "
            f"dequantized weight says, expected within {bound:g}. The kernel does not "
            "compute what its values say, or dequantize() of the backend is wrong: load the model with the library's "
            "plain torch kernel, or with zoquant.load(..., runtime='native')."
        )
    return y


def _name(layer: AttachedLayer) -> str:
    return layer.path or type(layer.module).__name__
