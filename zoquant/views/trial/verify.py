"""The check of `attach`: does a value that is written change the output of its layer as predicted?"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import ScaleView, Uncached
from zoquant.views.layout import write_view
from zoquant.views.model_views import AttachedLayer
from zoquant.views.trial.agreement import COARSEST, TOLERANCE, disagreement, product
from zoquant.views.trial.grids import check_grids

_FACTOR = 1.5
_INSTEAD_OF_ZERO = 0.5
_INSTEAD = (
    "Load the model with the library's plain torch kernel, or with zoquant.load(..., runtime='native'), until that is "
    "mended."
)


def verify_layer(layer: AttachedLayer, views: Sequence[ScaleView], checked: Sequence[ScaleView]) -> None:
    """Write views of a layer as training does, run it, compare, and write the old values back; then try its grids.

    A layer whose backend says that nothing is cached is left alone.
    """
    if isinstance(layer.backend, Uncached) and not layer.backend.cached:
        return
    x = layer.backend.sample_input(layer.module)
    before, _ = _agreed_output(layer, x, "before any write", "the kernel does not compute what its values say")
    codes = _codes(layer.module, views)
    for view in checked:
        old = view.read()
        moved = torch.where(old == 0, _INSTEAD_OF_ZERO, old * _FACTOR)
        try:
            write_view(view, moved)
            layer.refresh()
            _check_codes(layer, view, codes, _codes(layer.module, views))
            if (fault := _fault(layer, view, x, before)) is not None:
                view.write(moved)
                layer.refresh()
                raise fault if _fault(layer, view, x, before) else UnsupportedLayoutError(_passed_by(layer, view))
        finally:
            view.write(old)
            layer.refresh()
    check_grids(layer, views)


def _codes(module: nn.Module, views: Sequence[ScaleView]) -> dict[str, Tensor]:
    """Return copies of a module's own integer tensors, but those that hold values as well."""
    held = [values for view in views for values in (view.live, getattr(view, "bytes", None)) if values is not None]
    shared = {values.untyped_storage().data_ptr() for values in held}
    codes = {}
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        plain = tensor is not None and type(tensor) in (Tensor, nn.Parameter) and not tensor.is_floating_point()
        if tensor is not None and plain and tensor.untyped_storage().data_ptr() not in shared:
            codes[name] = tensor.detach().clone()
    return codes


def _check_codes(
    layer: AttachedLayer, view: ScaleView, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> None:
    for name in before.keys() | after.keys():
        if name not in before or name not in after or not torch.equal(before[name], after[name]):
            raise UnsupportedLayoutError(
                f"{_name(layer)}.{view.name} ({layer.backend.name}): a write changed the codes in {name!r}, and codes "
                f"never change. Let write() and refresh() leave {name!r} alone."
            )


def _fault(layer: AttachedLayer, view: ScaleView, x: Tensor, before: Tensor) -> UnsupportedLayoutError | None:
    """Return what is wrong with a layer whose output is not that of the values that were written."""
    kept = f"the kernel of {type(layer.module).__name__} keeps a copy of its own, so its backend needs refresh(module)"
    try:
        after, weight = _agreed_output(layer, x, f"after a write to {view.name!r}", kept)
    except UnsupportedLayoutError as error:
        return error
    if not torch.equal(after, before) or not weight.any():
        return None
    return UnsupportedLayoutError(
        f"{_name(layer)}.{view.name} ({layer.backend.name}): the output did not change when the values were multiplied "
        f"by {_FACTOR}. Either {kept}; or open() returns views of copies. {_INSTEAD}"
    )


def _passed_by(layer: AttachedLayer, view: ScaleView) -> str:
    kind = type(view).__name__
    return (
        f"{_name(layer)}.{view.name} ({layer.backend.name}): live is the storage, so training writes there and never "
        f"calls write() of {kind}, which does more than that, and the output does not follow. Give the backend "
        f"refresh(module), which is called after every write, or let live of {kind} be None."
    )


def _agreed_output(layer: AttachedLayer, x: Tensor, when: str, cause: str) -> tuple[Tensor, Tensor]:
    """Return the module's output and its dequantized weight, after comparing them."""
    module = layer.module
    with torch.no_grad():
        y: Tensor = module(x)
        weight, bound = layer.backend.dequantize(module), TOLERANCE.get(y.dtype, COARSEST)
        how = disagreement(y, product(module, weight, x), bound)
    if how:
        raise UnsupportedLayoutError(
            f"{_name(layer)} ({layer.backend.name}): {when} the output of {type(module).__name__} is {how} what its "
            f"dequantized weight says, expected within {bound:g}. Either {cause}; or dequantize() is wrong. {_INSTEAD}"
        )
    return y, weight


def _name(layer: AttachedLayer) -> str:
    return layer.path or type(layer.module).__name__
