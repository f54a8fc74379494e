"""The experts of GPT-OSS, each with two matrices of its own, so that one at a time is decoded.

Source: transformers 5.23.0, models/gpt_oss/modeling_gpt_oss.py (`GptOssExperts`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from zoquant.native.experts import sum_of_experts
from zoquant.native.meta import ModuleSlots

PARTS = ("gate_up_proj", "down_proj")


class RoutedExperts(nn.Module):
    """Runs every token through the experts that its router chose.

    Args:
        experts: the module of transformers whose place it takes.
    """

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.count, hidden, inner = experts.num_experts, experts.hidden_size, experts.intermediate_size
        self.alpha, self.limit = float(experts.alpha), float(experts.limit)
        sizes = {"gate_up_proj": (hidden, 2 * inner), "down_proj": (inner, hidden)}
        for part, (columns, rows) in sizes.items():
            linears = [nn.Linear(columns, rows, bias=False, device="meta") for _ in range(self.count)]
            self.add_module(part, nn.ModuleList(linears))
            self.register_parameter(f"{part}_bias", nn.Parameter(torch.empty(self.count, rows, device="meta")))

    def forward(self, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts, see `zoquant.native.experts.sum_of_experts`."""
        return sum_of_experts(self._expert, self.count, hidden_states, router_indices, routing_weights)

    def _expert(self, number: int, x: Tensor) -> Tensor:
        return self._part("down_proj", number, self._gated(self._part("gate_up_proj", number, x)))

    def _part(self, part: str, expert: int, x: Tensor) -> Tensor:
        y: Tensor = getattr(self, part)[expert](x) + getattr(self, f"{part}_bias")[expert]
        return y

    def _gated(self, both: Tensor) -> Tensor:
        gate = both[..., ::2].clamp(max=self.limit)
        up = both[..., 1::2].clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(gate * self.alpha)


def open_experts(model: nn.Module) -> None:
    """Put `RoutedExperts` in the place of all experts of an empty model of transformers."""
    places = ModuleSlots(model)
    for path, module in list(model.named_modules()):
        if type(module).__name__ == "GptOssExperts":
            places.replace(path, RoutedExperts(module))
