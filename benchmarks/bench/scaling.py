"""How a step over its two forwards grows with batch, length and views."""

from typing import Any

from torch import nn

from benchmarks.bench.sample import every_layer
from zoquant.cli.bench.measure import sample_ids, sample_loss
from zoquant.cli.bench.timing import in_turn, ratio, spread
from zoquant.optim.optimizer import ZOSGD


def scaling(model: nn.Module, batch: int, length: int, rounds: int) -> dict[str, Any]:
    """Return the step over its two forwards for smaller batches, shorter rows and fewer views."""
    halves: dict[str, list[tuple[int, int, int]]] = {
        "batch": [(max(1, batch // n), length, 1) for n in (8, 4, 2, 1)],
        "length": [(batch, max(2, length // n), 1) for n in (4, 2, 1)],
        "views": [(batch, length, share) for share in (4, 2, 1)],
    }
    return {name: [_point(model, *each, rounds) for each in dict.fromkeys(points)] for name, points in halves.items()}


def _point(model: nn.Module, batch: int, length: int, share: int, rounds: int) -> dict[str, Any]:
    ids, views = sample_ids(model, batch, length), every_layer(model, share)
    optimizer = ZOSGD(views, lr=0.0)
    times = in_turn(
        {
            "forwards": lambda: (sample_loss(model, ids), sample_loss(model, ids)),
            "step": lambda: optimizer.step(lambda: sample_loss(model, ids)),
        },
        rounds,
    )
    return {
        "batch": batch,
        "length": length,
        "values": views.trainable,
        "step_seconds": spread(times["step"]),
        "overhead": ratio(times["step"], times["forwards"]),
    }
