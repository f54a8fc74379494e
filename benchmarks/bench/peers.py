"""The peers as textbook code on the same model and batch: what a step of theirs costs over two forwards."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench.dense import make_dense, shared_copy, why_not_dense
from benchmarks.bench.textbook import Step, adamw_step, lora, mezo_step, qzo_step
from zoquant.checkpoint.loading import default_compute_dtype
from zoquant.cli.bench.measure import sample_loss
from zoquant.cli.bench.timing import in_turn, ratio, spread
from zoquant.native import PackedWeight
from zoquant.views.attach import attach


@dataclass(frozen=True)
class Trained:
    """A model and how a peer trains it.

    Attributes:
        model: the model in the form that the peer wants.
        step: its step.
        parameters: how many numbers it moves.
    """

    model: nn.Module
    step: Step
    parameters: int


@dataclass(frozen=True)
class Peer:
    """One peer.

    Attributes:
        name: what the table calls it.
        bytes_a_weight: what it holds for each weight of the model, activations aside; 0 for one that stays packed.
        prepare: makes a model on native layers, which it may change, ready to be trained.
        layers: how the paths of the layers end that it needs; none if any will do.
    """

    name: str
    bytes_a_weight: int
    prepare: Callable[[nn.Module], Trained]
    layers: tuple[str, ...] = ()


def peers(model: nn.Module, ids: Tensor, rounds: int) -> dict[str, Any]:
    """Return the time of a step of each peer, over two forwards of the model that it trains.

    Args:
        model: a model on native layers; it is left as it was.
        ids: the batch, int64 `[batch, length]`.
        rounds: repetitions.

    Returns:
        By peer: seconds of a step and of two forwards and their ratio, or `skipped` with the reason.
    """
    views, found = attach(model), {}
    for peer in PEERS:
        try:
            found[peer.name] = _peer(peer, model, ids, rounds)
        finally:
            views.write()
    return found


def _peer(peer: Peer, model: nn.Module, ids: Tensor, rounds: int) -> dict[str, Any]:
    if (reason := why_not(peer, model)) is not None:
        return {"skipped": reason}
    trained, seeds = peer.prepare(shared_copy(model)), iter(range(1 << 30))
    times = in_turn(
        {
            "forwards": lambda: (sample_loss(trained.model, ids), sample_loss(trained.model, ids)),
            "step": lambda: trained.step(trained.model, ids, next(seeds)),
        },
        rounds,
    )
    return {
        "trained_parameters": trained.parameters,
        "step_seconds": spread(times["step"]),
        "two_forwards_seconds": spread(times["forwards"]),
        "overhead": ratio(times["step"], times["forwards"]),
    }


def why_not(peer: Peer, model: nn.Module) -> str | None:
    """Return why a peer cannot train a model on this machine; None if it can."""
    if peer.layers and not any(path.endswith(peer.layers) for path, _ in model.named_modules()):
        return f"no {' and '.join(peer.layers)}"
    return why_not_dense(model, peer.bytes_a_weight) if peer.bytes_a_weight else None


def _qzo(model: nn.Module) -> Trained:
    """Move the first scale of each matrix, what codes are multiplied with: a minimum beside it may be negative."""
    packed = [module for module in model.modules() if isinstance(module, PackedWeight)]
    names = [next((field.name for field in each.fields if field.role == "scale"), None) for each in packed]
    scales = [each.value(name) for each, name in zip(packed, names, strict=True) if name is not None]
    return Trained(model, qzo_step(scales), _count(scales))


def _mezo(model: nn.Module) -> Trained:
    dense = make_dense(model, default_compute_dtype(next(model.buffers()).device))
    parameters = list(dense.parameters())
    return Trained(dense, mezo_step(parameters), _count(parameters))


def _lora(model: nn.Module) -> Trained:
    dense = make_dense(model, torch.float32)
    added = lora(dense)
    return Trained(dense, adamw_step(added), _count(added))


def _full(model: nn.Module) -> Trained:
    dense = make_dense(model, torch.float32).requires_grad_(True)
    parameters = list(dense.parameters())
    return Trained(dense, adamw_step(parameters), _count(parameters))


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


PEERS = (
    Peer("QZO, per tensor, in the dtype of the scales", 0, _qzo),
    Peer("MeZO, per parameter, dense", 4, _mezo),
    Peer("LoRA r8 on q and v, AdamW, dense float32", 4, _lora, ("q_proj", "v_proj")),
    Peer("full fine-tuning, AdamW, dense float32", 16, _full),
)
"""What zoquant is measured against. AdamW holds weight, gradient and two moments in float32: 16 bytes."""
