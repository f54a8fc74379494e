"""Experts that a folder holds one by one, in a model of transformers 5, which joins those of a layer on loading."""

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.native.experts import sum_of_experts
from zoquant.native.meta import ModuleSlots

_MATRICES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""What folders call the three matrices of an expert."""
_FUSED = ("gate_up_proj", "down_proj")


class ListedExperts(nn.Module):
    """`down_e(gated(gate_e(x), up_e(x)))`, weighted and summed over the experts e of every token.

    Expert 0 is the module `0`, and so on, with a linear layer for each matrix, so that a folder finds its place for it.
    It takes the place of the fused experts of transformers 5, whose gate it applies.

    Args:
        fused: the module of transformers, on the meta device. Its matrices are taken from it.
        matrices: the names of gate, up and down.

    Source: transformers 5.23, `integrations.moe.use_experts_implementation` and `MixtralExperts.forward`.
    """

    def __init__(self, fused: Any, matrices: tuple[str, str, str]) -> None:
        super().__init__()
        self.count, hidden, width = fused.down_proj.shape
        self.matrices = matrices
        for part in _FUSED:
            delattr(fused, part)
        self.fused = fused
        sizes = dict(zip(matrices, ((hidden, width), (hidden, width), (width, hidden)), strict=True))
        for number in range(self.count):
            linears = {name: nn.Linear(*size, bias=False, device="meta") for name, size in sizes.items()}
            self.add_module(str(number), nn.ModuleDict(linears))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts, see `zoquant.native.experts.sum_of_experts`."""
        return sum_of_experts(self._expert, self.count, hidden_states, top_k_index, top_k_weights)

    def _expert(self, number: int, x: Tensor) -> Tensor:
        gate, up, down = (self.get_submodule(f"{number}.{name}") for name in self.matrices)
        inner = self.fused._apply_gate(torch.cat((gate(x), up(x)), -1))
        y: Tensor = down(inner)
        return y


def list_experts(model: nn.Module, held: Set[str]) -> bool:
    """Put `ListedExperts` in the place of fused experts that a folder holds one by one; tell whether there are any."""
    places = ModuleSlots(model)
    found = [(path, module, _matrices(path, module, held)) for path, module in model.named_modules()]
    listed = [(path, module, matrices) for path, module, matrices in found if matrices]
    for path, module, matrices in listed:
        places.replace(path, ListedExperts(module, matrices))
    return bool(listed)


def _matrices(path: str, module: Any, held: Set[str]) -> tuple[str, str, str] | None:
    """Return what a folder calls the matrices of the experts that `module` fuses; None if it holds them otherwise."""
    if not all(isinstance(getattr(module, part, None), nn.Parameter) for part in _FUSED):
        return None
    if not getattr(module, "is_concatenated", False) or module.is_transposed or module.has_bias or not module.has_gate:
        return None
    ends = (0, len(module.down_proj) - 1)
    return next((names for names in _MATRICES if all(f"{path}.{end}.{names[0]}" in held for end in ends)), None)
