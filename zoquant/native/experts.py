"""The experts of a layer over packed words: only the experts that a token was sent to are decoded."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from zoquant.errors import ShapeError
from zoquant.native.layers import QuantLinear
from zoquant.native.packed import TILE

Activation = Callable[[Tensor], Tensor]


def sum_of_experts(
    expert: Callable[[int, Tensor], Tensor], count: int, x: Tensor, chosen: Tensor, weights: Tensor
) -> Tensor:
    """Return the weighted sum of the chosen experts, `[tokens, hidden]`, in the dtype of `x`.

    Args:
        expert: what the expert of a number makes of some tokens.
        count: number of experts.
        x: `[tokens, hidden]`.
        chosen: experts of each token, int64 `[tokens, k]`; a number of `count` or more stands for none.
        weights: weight of each of them, `[tokens, k]`.
    """
    out = torch.zeros_like(x)
    for number in torch.unique(chosen).tolist():
        if number < count:
            token, place = torch.where(chosen == number)
            y = expert(number, x[token]) * weights[token, place, None]
            out.index_add_(0, token, y.to(out.dtype))
    return out


class QuantExperts(nn.Module):
    """`down_e(act(gate_e(x)) · up_e(x))`, weighted and summed over the experts e of every token.

    Each of the three matrices holds all experts, one below the other, as the file has them. It takes the place of the
    fused experts of transformers 5, and of the list of modules of transformers 4.

    Args:
        gate: `[experts · width, hidden]`.
        up: `[experts · width, hidden]`.
        down: `[experts · hidden, width]`.
        count: number of experts.
        activation: what is applied to the gate.

    Attributes:
        reached: the experts that a token was sent to, since somebody last cleared the set.

    Raises:
        ShapeError: the matrices do not fit together.

    Source: transformers 5.23, `Qwen2MoeExperts.forward`; ggml `ffn_gate_exps`, `ffn_up_exps`, `ffn_down_exps`.
    """

    def __init__(
        self, gate: QuantLinear, up: QuantLinear, down: QuantLinear, *, count: int, activation: Activation
    ) -> None:
        super().__init__()
        hidden, width = gate.in_features, down.in_features
        for name, linear, shape in (
            ("gate", gate, (count * width, hidden)),
            ("up", up, (count * width, hidden)),
            ("down", down, (count * hidden, width)),
        ):
            if (linear.out_features, linear.in_features) != shape:
                raise ShapeError(
                    f"{name} of {count} experts: expected a matrix {shape}, got "
                    f"{(linear.out_features, linear.in_features)}. Stack the experts one below the other."
                )
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down
        self.count = count
        self.activation = activation
        self.reached: set[int] = set()

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts, see `sum_of_experts`."""
        return sum_of_experts(self.expert, self.count, x, chosen, weights)

    def expert(self, number: int, x: Tensor) -> Tensor:
        """Return what one expert makes of `x`, `[tokens, hidden]`."""
        if len(x):
            self.reached.add(number)
        inner = self.activation(self._part(self.gate_proj, number, x)) * self._part(self.up_proj, number, x)
        return self._part(self.down_proj, number, inner)

    def __getitem__(self, number: int) -> Activation:
        """Return one expert as a function, as the list of modules of transformers 4 does."""
        return partial(self.expert, int(number))

    def __len__(self) -> int:
        return self.count

    def _part(self, linear: QuantLinear, number: int, x: Tensor) -> Tensor:
        """Return the outputs of one expert, its rows decoded a tile at a time."""
        height, step = linear.out_features // self.count, max(1, TILE // linear.in_features)
        first, end = number * height, (number + 1) * height
        tiles = [slice(start, min(start + step, end)) for start in range(first, end, step)]
        parts = [linear.rows(x, tile, linear.compute_dtype).to(x.dtype) for tile in tiles]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def extra_repr(self) -> str:
        return f"experts={self.count}"
