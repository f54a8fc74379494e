"""Probes of rows and columns against plain inference on as many rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench.sample import ends
from zoquant.cli.bench.measure import default_step, default_views, row_losses
from zoquant.cli.bench.timing import in_turn, ratio, spread
from zoquant.errors import ZoquantError
from zoquant.optim.optimizer import ZOSGD
from zoquant.views.attach import attach
from zoquant.views.model_views import Views


def batched(model: nn.Module, ids: Tensor, directions: int, rounds: int) -> dict[str, Any]:
    """Return the throughput of K directions, both signs, in one forward, and of a direction to each example.

    Args:
        model: the model.
        ids: the batch, int64 `[B, length]`.
        directions: K.
        rounds: repetitions.

    Returns:
        `together`: K directions that all see the batch, 2K·B rows; `each`: B directions, one an example, 2B rows;
        `default`: as `each`, in the layers that move where nobody says which, those below run once; each with the share
        of the throughput of plain inference. `skipped` with the reason where rows and columns do not fit the model.
    """
    try:
        views = attach(model, exclude=ends(model))
        together = _optimizer(views, directions, split=False)
        each = _optimizer(views, len(ids))
        default = _optimizer(default_views(model), len(ids))
        return {
            "together": _against_inference(model, ids, rounds, together, step_of(model, ids, together)),
            "each": _against_inference(model, ids, rounds, each, step_of(model, ids, each)),
            "default": _against_inference(model, ids, rounds, default, default_step(model, ids, default)),
        }
    except ZoquantError as error:
        return {"skipped": str(error)}


def _optimizer(views: Views, directions: int, *, split: bool = True) -> ZOSGD:
    return ZOSGD(views, subspace="rows-columns", probes=directions, split=split, lr=0.0)


def step_of(model: nn.Module, ids: Tensor, optimizer: ZOSGD) -> Callable[[], object]:
    """Return what does a step on a batch."""
    return lambda: optimizer.step(lambda repeat: row_losses(model, ids.repeat(repeat, 1)))


def _against_inference(
    model: nn.Module, ids: Tensor, rounds: int, optimizer: ZOSGD, step: Callable[[], object]
) -> dict[str, Any]:
    rows = ids.repeat(optimizer.repeat, 1)

    def infer() -> None:
        with torch.no_grad():
            row_losses(model, rows).tolist()

    times = in_turn({"inference": infer, "step": step}, rounds)
    return {
        "directions": optimizer.probes,
        "rows": len(rows),
        "inference_seconds": spread(times["inference"]),
        "step_seconds": spread(times["step"]),
        "throughput_over_inference": ratio(times["inference"], times["step"]),
    }
