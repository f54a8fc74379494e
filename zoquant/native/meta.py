"""Building a model without memory for its weights."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class WithoutWeights(TorchFunctionMode):
    """Puts what `torch.empty` makes on the meta device. Layers make their weights with it, but not their buffers."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        settings = dict(kwargs or {})
        if func is torch.empty:
            settings["device"] = "meta"
        return func(*args, **settings)


def forget_weights(model: nn.Module) -> None:
    """Put every parameter on the meta device, those too that layers make as ones or zeros; tied ones stay tied."""
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                empty = nn.Parameter(value.detach().to("meta"), requires_grad=False)
                module._parameters[name] = known.setdefault(id(value), empty)


def tied(model: nn.Module) -> list[list[str]]:
    """Return the names of parameters that are one and the same, a list for each."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def unfilled(model: nn.Module) -> list[str]:
    """Return the names of parameters and buffers that still have no memory."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in tensors if tensor.device.type == "meta"]


class ModuleSlots:
    """Where a model refers to each of its modules, found once, to replace many of them.

    Args:
        model: the model. Nobody else may replace its modules meanwhile.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._of: dict[int, list[tuple[nn.Module, str]]] = {}
        self._add_children(model)

    def replace(self, path: str, module: nn.Module) -> None:
        """Put a module in the place of another, wherever the model refers to it, and forget what only that one held."""
        old = self.model.get_submodule(path)
        for parent, name in self._of.pop(id(old)):
            parent._modules[name] = module
            self._add(parent, name, module)
        self._drop_children(old)

    def _add(self, parent: nn.Module, name: str, child: nn.Module) -> None:
        known = id(child) in self._of
        self._of.setdefault(id(child), []).append((parent, name))
        if not known:
            self._add_children(child)

    def _add_children(self, parent: nn.Module) -> None:
        for name, child in parent._modules.items():
            if child is not None:
                self._add(parent, name, child)

    def _drop_children(self, module: nn.Module) -> None:
        """Forget the places in a module, unless the model still refers to it."""
        if id(module) in self._of:
            return
        for child in module.children():
            self._of[id(child)] = [place for place in self._of[id(child)] if place[0] is not module]
            if not self._of[id(child)]:
                del self._of[id(child)]
                self._drop_children(child)
