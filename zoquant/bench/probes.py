"""Batched probes against plain inference on as many rows."""

from typing import Any

import torch
from torch import Tensor, nn

from zoquant.attach import attach
from zoquant.batched import BatchedZO
from zoquant.bench.sample import ends, row_losses
from zoquant.bench.timing import in_turn, ratio, spread
from zoquant.errors import ZoquantError


def batched(model: nn.Module, ids: Tensor, directions: int, rounds: int) -> dict[str, Any]:
    """Return the throughput of K directions, both signs, in one forward, and of a direction to each example.

    Args:
        model: the model.
        ids: the batch, int64 `[B, length]`.
        directions: K.
        rounds: repetitions.

    Returns:
        `together`: K directions that all see the batch, 2K·B rows; `each`: B directions, one an example, 2B rows;
        each with the share of the throughput of plain inference. `skipped` with the reason where rows and columns do
        not fit the model.
    """
    try:
        return {
            "together": _against_inference(model, ids, rounds, directions=directions, split=False),
            "each": _against_inference(model, ids, rounds, directions=len(ids), split=True),
        }
    except ZoquantError as error:
        return {"skipped": str(error)}


def _against_inference(model: nn.Module, ids: Tensor, rounds: int, *, directions: int, split: bool) -> dict[str, Any]:
    views = attach(model, exclude=ends(model))
    optimizer = BatchedZO(views, directions=directions, split=split, lr=0.0)
    rows = ids.repeat(optimizer.repeat, 1)

    def infer() -> None:
        with torch.no_grad():
            row_losses(model, rows).tolist()

    def step() -> None:
        optimizer.step(lambda repeat: row_losses(model, ids.repeat(repeat, 1)))

    times = in_turn({"inference": infer, "step": step}, rounds)
    return {
        "directions": directions,
        "rows": len(rows),
        "inference_seconds": spread(times["inference"]),
        "step_seconds": spread(times["step"]),
        "throughput_over_inference": ratio(times["inference"], times["step"]),
    }
