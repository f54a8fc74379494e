"""The peers as textbook code on the same model and batch.

Each is written from its paper in its plainest form: no flat buffer, no compiled noise, one parameter after the other.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from zoquant.attach import attach
from zoquant.bench.sample import dense_copy, row_losses, sample_loss
from zoquant.bench.timing import in_turn, ratio, spread

_EPS, _LR, _QZO_CLIP = 1e-3, 1e-6, 100.0
_ADAMW_BYTES = 16  # weight, gradient and two moments in float32


def peers(model: nn.Module, ids: Tensor, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Return the time of a step of each peer, over two forwards of the model that it trains.

    Args:
        model: a model on native layers; it is left as it was.
        ids: the batch, int64 `[batch, length]`.
        dtype: dtype of the dense weights of MeZO.
        rounds: repetitions.

    Returns:
        By peer: seconds of a step and of two forwards and their ratio, or `skipped` with the reason.
    """
    views = attach(model)
    scales = [view.live for view in views if view.live is not None]
    found = {"QZO, per tensor, in the dtype of the scales": _measure(model, ids, rounds, qzo_step(scales))}
    views.write()
    dense = dense_copy(model, dtype)
    found["MeZO, per parameter, dense"] = _measure(dense, ids, rounds, mezo_step([*dense.parameters()]))
    del dense
    found["LoRA r8 on q and v, AdamW, dense float32"] = _first_order(model, ids, rounds, lora)
    found["full fine-tuning, AdamW, dense float32"] = _first_order(model, ids, rounds, _all_parameters)
    return found


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


def _all_parameters(dense: nn.Module) -> list[nn.Parameter]:
    for parameter in dense.parameters():
        parameter.requires_grad_(True)
    return list(dense.parameters())


def _first_order(
    model: nn.Module, ids: Tensor, rounds: int, trained: Callable[[nn.Module], list[nn.Parameter]]
) -> dict[str, Any]:
    """Measure AdamW on some parameters of a dense copy, where it fits."""
    dense = dense_copy(model, torch.float32)
    parameters = trained(dense)
    needed = _ADAMW_BYTES * sum(parameter.numel() for parameter in parameters)
    if not parameters:
        return {"skipped": "no q_proj and v_proj"}
    if ids.device.type == "cpu" and needed > psutil.virtual_memory().available // 2:
        return {"skipped": f"needs {needed / 1e9:.1f} GB beside the model"}
    optimizer = torch.optim.AdamW(parameters, lr=_LR)

    def step(dense: nn.Module, ids: Tensor, number: int) -> None:
        del number
        row_losses(dense, ids).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return {**_measure(dense, ids, rounds, step), "trained_parameters": needed // _ADAMW_BYTES}


def _measure(model: nn.Module, ids: Tensor, rounds: int, step: Step) -> dict[str, Any]:
    seeds = iter(range(1 << 30))
    times = in_turn(
        {
            "forwards": lambda: (sample_loss(model, ids), sample_loss(model, ids)),
            "step": lambda: step(model, ids, next(seeds)),
        },
        rounds,
    )
    return {
        "step_seconds": spread(times["step"]),
        "two_forwards_seconds": spread(times["forwards"]),
        "overhead": ratio(times["step"], times["forwards"]),
    }
