"""What a step costs over its forwards, and what it does beside them."""

import gc
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.attach import Views, attach
from zoquant.bench.sample import sample_ids, sample_loss
from zoquant.bench.timing import in_turn, ratio, spread
from zoquant.estimators import ESTIMATORS, Estimator
from zoquant.memory import rss_bytes
from zoquant.noise import step_seed
from zoquant.optim import ZOSGD
from zoquant.update import Step


def overheads(model: nn.Module, ids: Tensor, rounds: int) -> dict[str, Any]:
    """Return for each estimator a step over as many forwards as it evaluates, and tokens a second."""
    return {name: _overhead(model, ids, made(), rounds) for name, made in ESTIMATORS.items()}


def _overhead(model: nn.Module, ids: Tensor, estimator: Estimator, rounds: int) -> dict[str, Any]:
    probes = estimator.least_probes
    count = len(estimator.points(probes))
    optimizer = ZOSGD(attach(model), lr=0.0, estimator=estimator, probes=probes)

    def forwards() -> None:
        for _ in range(count):
            sample_loss(model, ids)

    times = in_turn({"forwards": forwards, "step": lambda: optimizer.step(lambda: sample_loss(model, ids))}, rounds)
    return {
        "forwards": count,
        "forwards_seconds": spread(times["forwards"]),
        "step_seconds": spread(times["step"]),
        "overhead": ratio(times["step"], times["forwards"]),
        "tokens_a_second": spread([count * ids.numel() / s for s in times["step"]]),
    }


def bandwidth(views: Views, rounds: int) -> dict[str, Any]:
    """Return bytes a second of drawing noise and of writing all views, against a plain copy of as many bytes."""
    buffer = views.buffers[0]
    source, out = buffer.source_of("rademacher"), torch.empty_like(buffer.delta)
    stored = sum(plane.base.nbytes for chunk in buffer._chunks for plane in chunk.planes)
    written = 2 * stored + buffer.delta.nbytes  # base and delta are read, theta is written
    room = torch.empty(2, max(written // 2, 1), dtype=torch.uint8, device=buffer.device)
    seeds = iter(range(1 << 60))
    times = in_turn(
        {
            "copy": lambda: room[0].copy_(room[1]),
            "noise": lambda: [source.draw(next(seeds), tile.start, out[tile]) for tile in buffer.tiles()],
            "write": lambda: buffer.write(seed=next(seeds), eps=0.0),
        },
        rounds,
    )
    moved = {"copy": written, "noise": buffer.delta.nbytes, "write": written}
    rates = {name: [moved[name] / s for s in found] for name, found in times.items()}
    views.write()
    return {
        "values": views.trainable,
        **{f"{name}_bytes_a_second": spread(found) for name, found in rates.items()},
        "noise_over_copy": ratio(rates["noise"], rates["copy"]),
        "write_over_copy": ratio(rates["write"], rates["copy"]),
    }


def replay_rate(views: Views, steps: int) -> dict[str, Any]:
    """Return how many steps a second a replay does over the views, which it leaves as they were."""
    optimizer = ZOSGD(views, lr=0.0)
    made = [Step((step_seed(0, number),), (1.0,), 1e-9) for number in range(steps)]
    mover = optimizer.trajectory.mover(views)
    (times,) = in_turn({"replay": lambda: mover.advance(made)}, 3).values()
    mover.reset()
    views.write()
    return {"steps": steps, "values": views.trainable, "steps_a_second": spread([steps / s for s in times])}


def growth(model: nn.Module, steps: int) -> dict[str, Any]:
    """Return how much resident memory many steps add, with real noise and writes and a loss that costs nothing."""
    optimizer = ZOSGD(attach(model), lr=0.0)
    for _ in range(3):
        optimizer.step(lambda: 1.0)
    gc.collect()
    before = rss_bytes()
    for _ in range(steps):
        optimizer.step(lambda: 1.0)
    gc.collect()
    return {"steps": steps, "rss_growth_bytes": rss_bytes() - before}


def scaling(model: nn.Module, batch: int, length: int, rounds: int) -> dict[str, Any]:
    """Return the step over its two forwards for smaller batches, shorter rows and fewer views."""
    halves: dict[str, list[tuple[int, int, int | None]]] = {
        "batch": [(max(1, batch // n), length, None) for n in (8, 4, 2, 1)],
        "length": [(batch, max(2, length // n), None) for n in (4, 2, 1)],
        "views": [(batch, length, share) for share in (4, 2, 1)],
    }
    return {name: [_point(model, *each, rounds) for each in dict.fromkeys(points)] for name, points in halves.items()}


def _point(model: nn.Module, batch: int, length: int, share: int | None, rounds: int) -> dict[str, Any]:
    ids, views = sample_ids(model, batch, length), attach(model)
    if share is not None:
        views = attach(model, include=list(views.keys[::share]))
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
