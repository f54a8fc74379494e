"""Steps of the peers, written from their papers in their plainest form: one parameter after the other."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.cli.bench.measure import row_losses, sample_loss

_EPS, _LR, _QZO_CLIP = 1e-3, 1e-6, 100.0

Step = Callable[[nn.Module, Tensor, int], Any]
"""Does one step: model, batch, number of the step."""


def mezo_step(parameters: Iterable[Tensor], clip: float = math.inf) -> Step:
    """Return a step of MeZO that moves every parameter in place and draws its noise anew each time.

    Args:
        parameters: what is moved.
        clip: bound on the derivative; MeZO has none.

    Source: MeZO (arXiv 2305.17333, algorithm 1).
    """
    moved = list(parameters)

    def perturb(seed: int, scale: float) -> None:
        generator = torch.Generator(moved[0].device).manual_seed(seed)
        for parameter in moved:
            z = torch.empty_like(parameter).normal_(generator=generator)
            parameter.data.add_(z, alpha=scale)

    def step(model: nn.Module, ids: Tensor, seed: int) -> None:
        perturb(seed, _EPS)
        plus = sample_loss(model, ids)
        perturb(seed, -2 * _EPS)
        minus = sample_loss(model, ids)
        perturb(seed, _EPS)
        perturb(seed, -_LR * max(-clip, min(clip, (plus - minus) / (2 * _EPS))))

    return step


def qzo_step(scales: Iterable[Tensor]) -> Step:
    """Return a step of QZO that moves every scale in place, clips the derivative and keeps scales at zero or above.

    Source: QZO (arXiv 2505.13430, algorithm 1 and equation 6).
    """
    tensors = list(scales)
    move = mezo_step(tensors, clip=_QZO_CLIP)

    def step(model: nn.Module, ids: Tensor, seed: int) -> None:
        move(model, ids, seed)
        for tensor in tensors:
            tensor.data.clamp_(min=0)

    return step


def adamw_step(parameters: Iterable[nn.Parameter]) -> Step:
    """Return a step of AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=_LR)

    def step(model: nn.Module, ids: Tensor, number: int) -> None:
        del number
        row_losses(model, ids).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


class LoRALinear(nn.Module):
    """y = W x + B A x · alpha / r, with W frozen.

    Source: LoRA (arXiv 2106.09685, section 4.1).
    """

    def __init__(self, linear: nn.Linear, rank: int = 8, alpha: float = 16.0) -> None:
        super().__init__()
        self.linear, self.scale = linear, alpha / rank
        self.a = nn.Parameter(torch.randn(rank, linear.in_features).to(linear.weight) / linear.in_features)
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank).to(linear.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways."""
        y: Tensor = self.linear(x) + x @ self.a.t() @ self.b.t() * self.scale
        return y


def lora(dense: nn.Module) -> list[nn.Parameter]:
    """Put an adapter beside every `q_proj` and `v_proj` and return what it trains; nothing where there is none."""
    paths = [path for path, module in dense.named_modules() if isinstance(module, nn.Linear)]
    added: list[nn.Parameter] = []
    for path in paths:
        if path.endswith(("q_proj", "v_proj")):
            parent, _, name = path.rpartition(".")
            layer = LoRALinear(dense.get_submodule(path))  # type: ignore[arg-type]
            setattr(dense.get_submodule(parent), name, layer)
            added += [layer.a, layer.b]
    return added
