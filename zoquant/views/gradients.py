"""The deltas of views as parameters of torch: autograd finds their gradient, any optimizer moves them.

A parameter is a part of the flat buffer's own delta, so what an optimizer writes is what `save_delta` saves. Theta is
written by the views, as after any other step: before the first layer of the next forward, once a delta has changed.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from zoquant.native import QuantExperts
from zoquant.views.flat_buffer import FlatBuffer, Space
from zoquant.views.layout import Slot, keeps_sign
from zoquant.views.model_views import BoundView, Views
from zoquant.views.true_backward import TensorPlaces, packed_of, refuse_without_backward


class Gradients(nn.Module):
    """A context in which the deltas of views have gradients; its parameters are the deltas, named by their keys.

    Coupled views share a parameter, under the key of the first. Give them to any optimizer, or let them be parameters
    of the model, `model.deltas = deltas`, for whoever asks a model for its parameters.

    Args:
        model: the model that the views belong to.
        views: what `attach` returned for it. What they hold already stays.
        space: `"relative"`: theta = base · (1 + delta); `"absolute"`: theta = base + delta.

    Raises:
        UnsupportedLayoutError: a layer has no backward; it is named.
        ValueError: coupled views shall move in absolute space, or the views hold a delta of the other space.
    """

    def __init__(self, model: nn.Module, views: Views, *, space: Space = "relative") -> None:
        super().__init__()
        views.check_space(space)
        tensors = TensorPlaces(model)
        refuse_without_backward(model, views, tensors)
        before, views.space = views.space, space
        self.views = views
        self._undo: list[Callable[[], None]] = []
        self._seen: list[int] = []
        try:
            for buffer in views.buffers:
                for number, slot in enumerate(buffer.slots):
                    self._add(buffer, number, slot, tensors)
            self._undo.append(register_optimizer_step_post_hook(self._after).remove)
            for module in _readers(model, views):
                self._undo.append(module.register_forward_pre_hook(self._before).remove)
        except BaseException:
            self.close()
            views.space = before
            raise
        self._seen = self._versions()

    def write(self) -> None:
        """Write theta into the model. Whoever moves a delta behind torch's back, by `.data`, calls it himself."""
        self._seen = self._versions()
        self.views.write()

    def close(self) -> None:
        """Write theta, and let the model be as it was before: its layers ask for no gradient any more."""
        while self._undo:
            self._undo.pop()()
        self.write()

    def __enter__(self) -> "Gradients":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, buffer: FlatBuffer, number: int, slot: Slot, tensors: TensorPlaces) -> None:
        """Make the parameter of a slot, and let its views depend on it."""
        indices = [buffer.views.index(view) for view in slot]
        with torch.inference_mode(False):
            delta = nn.Parameter(buffer.delta[buffer.slice_of(indices[0])].view(slot[0].shape))
        *path, name = slot[0].name.split(".")
        holder: nn.Module = self
        for part in path:
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        holder.register_parameter(name, delta)
        for index in indices:
            self._undo.append(_depend(buffer, index, delta, tensors))

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Write theta before a forward if a delta has changed since."""
        if self._versions() != self._seen:
            self.write()

    def _after(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that an optimizer has made a step: a fused one moves parameters without counting up their versions."""
        self._seen = []

    def _versions(self) -> list[int]:
        return [buffer.delta._version for buffer in self.views.buffers]


def _readers(model: nn.Module, views: Views) -> list[nn.Module]:
    """Return the modules whose forward is about to read a view, each once."""
    layers = [layer for view in views if view.layer is not None for layer in (view.layer, *view.layer.tied)]
    mixtures = [module for module in model.modules() if isinstance(module, QuantExperts)]
    return list(dict.fromkeys([model, *mixtures, *(layer.module for layer in layers)]))


def slope(delta: Tensor, base: Tensor, *, space: Space, keep_sign: bool, dtype: torch.dtype) -> Tensor:
    """Return the derivative of theta by delta, float32, of the arguments of `zoquant.views.flat_buffer.compose`.

    It is 0 where theta has stopped: at zero, or at the largest number of its dtype.
    """
    relative = space == "relative"
    theta = torch.addcmul(base, base, delta) if relative else base + delta
    moves = theta.abs() <= torch.finfo(dtype).max
    if keep_sign:
        moves &= (delta >= -1) if relative else (theta * base.sign() >= 0) & (base != 0)
    return torch.where(moves, base if relative else 1.0, 0.0)


class _Theta(torch.autograd.Function):
    """What stands for the values of a view in a graph: their gradient comes in, that of the delta goes out."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, buffer: FlatBuffer, index: int, values: Tensor) -> Tensor:
        ctx.buffer, ctx.index = buffer, index
        return values.data  # the same memory, and not a view for autograd, which forbids to write behind one

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        buffer, index = ctx.buffer, ctx.index
        view, delta = cast(BoundView, buffer.views[index]), buffer.delta[buffer.slice_of(index)]
        by = slope(
            delta.detach().view(view.shape), buffer.base(index),
            space=buffer.space, keep_sign=keeps_sign(view.role), dtype=view.dtype,
        )  # fmt: skip
        return by.mul_(view.gradient(gradients[0]).float()), None, None, None


def _theta(delta: Tensor, buffer: FlatBuffer, index: int, values: Tensor) -> Tensor:
    """Return values of a view that depend on its delta: those given, or what stands for them in their shape."""
    theta: Tensor = _Theta.apply(delta, buffer, index, values)  # type: ignore[no-untyped-call]
    return theta


def _depend(buffer: FlatBuffer, index: int, delta: nn.Parameter, tensors: TensorPlaces) -> Callable[[], None]:
    """Let whatever reads a view depend on a delta in every graph, and return what undoes it."""
    view: Any = buffer.views[index]
    held = packed_of(view)
    if not held:
        return _replace(tensors.places(view), lambda tensor: _theta(delta, buffer, index, tensor))
    stand_in = _theta(delta, buffer, index, torch.zeros((), device=view.device).expand(view.shape))
    for packed in held:
        packed.moving = {**packed.moving, view.local: stand_in}

    def undo() -> None:
        for packed in held:
            packed.moving = {name: each for name, each in packed.moving.items() if name != view.local}

    return undo


def _replace(places: Sequence[tuple[nn.Module, str]], made: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Put tensors made of plain ones where those were, as buffers, and return what undoes it."""
    before = [(module, name, name in module._parameters, getattr(module, name)) for module, name in places]
    instead = made(before[0][3].detach())
    for module, name, parameter, _ in before:
        if parameter:
            del module._parameters[name]
        module._buffers[name] = instead

    def undo() -> None:
        for module, name, parameter, tensor in before:
            if parameter:
                del module._buffers[name]
                module._parameters[name] = tensor
            else:
                module._buffers[name] = tensor

    return undo
