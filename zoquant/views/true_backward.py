"""Which layers have a true backward: zoquant's own, plain ones, and those of a library that shows it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.native.packed import PackedWeight
from zoquant.protocol import PLAIN_ROLES, Backend
from zoquant.views.attach import claimed
from zoquant.views.model_views import BoundView, Views
from zoquant.views.streamed_buffer import StreamedBuffer
from zoquant.views.trial.agreement import COARSEST, TOLERANCE


class TensorPlaces:
    """Where the modules of a model hold plain tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._places: dict[tuple[int, tuple[int, ...]], list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor.numel():
                    self._places.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append((module, name))

    def places(self, view: BoundView) -> Sequence[tuple[nn.Module, str]]:
        """Return where the tensor of a view is held: module and name; several where it is tied, none if nowhere."""
        tensor = (
            view.live if view.live is not None or view.layer is None else getattr(view.layer.module, view.local, None)
        )
        return () if tensor is None else self._places.get((tensor.data_ptr(), tuple(tensor.shape)), ())


def packed_of(view: BoundView) -> list[PackedWeight]:
    """Return the native matrices that hold a view; several where layers are tied, none of another layer."""
    layers = [] if view.layer is None else [view.layer, *view.layer.tied]
    held = [getattr(layer.module, "packed", None) for layer in layers]
    return [each for each in held if isinstance(each, PackedWeight) and view.local in {f.name for f in each.fields}]


def refuse_without_backward(model: nn.Module, views: Views, tensors: TensorPlaces) -> None:
    """Refuse views whose values have no gradient, and models with a layer that gives none to its input."""
    for buffer in views.buffers:
        for view in buffer.views:
            if isinstance(buffer, StreamedBuffer):
                raise _error(view.name, "is streamed, so it is written while the forward runs", "streamed=False")
            if not packed_of(view) and not (view.role in PLAIN_ROLES and tensors.places(view)):  # type: ignore[arg-type]
                raise _error(
                    view.name, "its layer has no gradient by its values", "zoquant.load(..., runtime='native')"
                )
    for path, module, backend in claimed(model):
        if not isinstance(getattr(module, "packed", None), PackedWeight):
            _check_input(path, module, backend)


def _check_input(path: str, module: nn.Module, backend: Backend) -> None:
    """Compare the gradient by the input of a layer with that of its dequantized weight."""
    try:
        weight, x = backend.dequantize(module), backend.sample_input(module)
    except UnsupportedLayoutError:
        return  # no matrix of codes: torch's own operations
    if not x.is_floating_point():
        return
    x = x.detach().requires_grad_()
    with torch.enable_grad(), _evaluating(module):
        y: Tensor = module(x)
    asked = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
    found = torch.autograd.grad(y, x, asked, allow_unused=True)[0] if y.requires_grad else None
    expected = asked.float() @ weight
    if found is None or not (found.float() - expected).norm() <= TOLERANCE.get(y.dtype, COARSEST) * expected.norm():
        what = f"{type(module).__name__} gives its input {'no' if found is None else 'a wrong'} gradient"
        raise _error(f"{path} ({backend.name})", what, "zoquant.load(..., runtime='native')")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Let a layer be in eval mode within a `with`: dropout has no one gradient."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _error(where: str, what: str, instead: str) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(f"{where}: {what}. Train it by forwards alone, with ZOSGD, or use {instead}.")
