"""Which experts of a mixture the training reached: no loss depended on the values of the others.

A step moves every value by d · z. For an expert that no token of the batch was sent to, d says nothing: its values walk
at random. Of an expert that no batch reached the whole delta is such a walk. No loss depended on it, so that to take it
back at the end gives the very run in which it was left out from the start.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zoquant.native import QuantExperts
from zoquant.views.model_views import BoundView, Views

_EXPERT = re.compile(r"(^|\.)experts\.\d+(\.|$)")
"""The path of a layer of one expert, in a model that has modules for each."""


class ReachedExperts:
    """Watches which experts the forwards reach; a context manager around the training.

    Native layers hold all experts of a matrix, one below the other: there an expert is some rows of a view. In other
    models an expert is the modules `...experts.<number>...`, reached once they are called with a token. Everything that
    is no expert counts as reached. A forward that evaluates counts as any other.

    Args:
        model: the model that the views belong to.
        views: what trains.
    """

    def __init__(self, model: nn.Module, views: Views) -> None:
        self.views = views
        self._mixtures: dict[nn.Module, QuantExperts] = {
            linear: mixture
            for mixture in model.modules()
            if isinstance(mixture, QuantExperts)
            for linear in (mixture.gate_proj, mixture.up_proj, mixture.down_proj)
        }
        self._called: set[nn.Module] = set()
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "ReachedExperts":
        """Start to watch."""
        for mixture in self._mixtures.values():
            mixture.reached.clear()
        self._called.clear()
        for module in {view.layer.module for view in self.views if view.layer and _EXPERT.search(view.layer.path)}:
            self._hooks.append(module.register_forward_pre_hook(self._see))
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to watch the modules; what was seen stays."""
        while self._hooks:
            self._hooks.pop().remove()

    def share(self) -> dict[str, float]:
        """Return by key the share of a view's values that were reached; of stacked experts it may be a part."""
        return {view.name: float(self._mask(view).float().mean()) for view in self.views}

    def forget_the_rest(self) -> int:
        """Take back the delta of everything that was not reached, and return how many values that were.

        The model and what `save_delta` writes are then those of a run that left these values out. A trajectory knows
        nothing of it: replayed, it gives the delta as it was before.
        """
        deltas: dict[str, Tensor] = {}
        for view in self.views:
            delta, mask = self.views.delta(view.name), self._mask(view)
            if bool((delta.ne(0) & ~mask).any()):
                deltas[view.name] = torch.where(mask, delta, 0.0)
        count = sum(int((self.views.delta(key) != delta).sum()) for key, delta in deltas.items())
        self.views.set_delta(deltas)
        return count

    def _see(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if any(value.numel() for value in args if isinstance(value, Tensor)):
            self._called.add(module)

    def _mask(self, view: BoundView) -> Tensor:
        """Return which values of a view were reached, bool in its shape."""
        layer = view.layer
        mixture = None if layer is None else self._mixtures.get(layer.module)
        if layer is None or (mixture is None and not _EXPERT.search(layer.path)):
            return torch.ones(view.shape, dtype=torch.bool, device=view.device)
        mask = torch.full(view.shape, layer.module in self._called, dtype=torch.bool, device=view.device)
        if mixture is not None:
            mask.view(mixture.count, -1)[sorted(mixture.reached)] = True
        return mask
