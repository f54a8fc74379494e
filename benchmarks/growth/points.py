"""What is measured, each point in a process of its own."""

import json
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

WIDTHS = {5: (128, 4, 16000), 15: (256, 6, 16000), 40: (512, 8, 16000), 135: (576, 30, 49152), 360: (960, 32, 49152),
          1100: (2048, 22, 32000), 3200: (3072, 28, 32000), 7000: (4096, 32, 32000)}  # fmt: skip
"""Million weights, about -> hidden size, layers, vocabulary. The first is there for short runs alone."""

LENGTH = 16
"""Tokens a row."""

_LARGE = 1000
"""Million weights from which on two rounds have to do."""


@dataclass(frozen=True)
class Point:
    """What one process measures.

    Attributes:
        sweep: what is varied: `size`, `views`, `batch`, `directions`, each with two forwards, or `together`, directions
            that share one forward.
        size: a key of `WIDTHS`.
        share: every how-many-th layer is attached, see `zoquant.bench.sample.every_layer`.
        batch: rows.
        directions: probes of a step.
        rounds: repetitions that count.
    """

    sweep: str
    size: int = 40
    share: int = 1
    batch: int = 4
    directions: int = 1
    rounds: int = 5


def points(largest: int, *, short: bool = False) -> list[Point]:
    """Return what a run measures.

    Args:
        largest: million weights of the largest model.
        short: two rounds of the smallest models instead.
    """
    usual = 5 if short else 40
    sizes = [5, 15, 40] if short else [size for size in WIDTHS if 5 < size <= largest]
    base = Point("size", size=usual, rounds=2 if short else 5)
    return [
        *(replace(base, size=size, rounds=2 if size > _LARGE else base.rounds) for size in sizes),
        *(replace(base, sweep="views", share=share) for share in (8, 4, 2, 1)),
        *(replace(base, sweep="batch", batch=batch) for batch in (1, 2, 4, 8, 16)),
        *(replace(base, sweep="directions", directions=count) for count in (1, 2, 4, 8)),
        *(replace(base, sweep="together", directions=count) for count in (1, 2, 4, 8)),
    ]


def measure(point: Point) -> dict[str, Any]:
    """Return one point with its figures: times in seconds, medians; peak memory of its process in bytes."""
    import zoquant
    from benchmarks.growth.model import random_model
    from zoquant.bench.sample import ends, every_layer, row_losses, sample_ids, sample_loss
    from zoquant.bench.timing import in_turn, spread
    from zoquant.memory import peak_rss_bytes
    from zoquant.native import PackedWeight

    model = random_model(*WIDTHS[point.size])
    ids = sample_ids(model, point.batch, LENGTH)
    calls: dict[str, Callable[[], Any]] = {"forward": lambda: sample_loss(model, ids)}
    if point.sweep == "together":
        views = zoquant.attach(model, exclude=ends(model))
        batched = zoquant.BatchedZO(views, directions=point.directions, split=False, lr=0.0)
        calls["step"] = lambda: batched.step(lambda repeat: row_losses(model, ids.repeat(repeat, 1)))
    else:
        views = every_layer(model, point.share)
        optimizer = zoquant.ZOSGD(views, lr=0.0, probes=point.directions)
        calls["step"] = lambda: optimizer.step(lambda: sample_loss(model, ids))
        calls["beside"] = lambda: optimizer.step(lambda: 1.0)
    times = in_turn(calls, point.rounds, warm_up=1)
    weights = sum(each.rows * each.columns for each in model.modules() if isinstance(each, PackedWeight))
    medians = {f"{name}_seconds": spread(found)["median"] for name, found in times.items()}
    return {**asdict(point), "weights": weights, "values": views.trainable, **medians, "peak_bytes": peak_rss_bytes()}


def run(todo: Sequence[Point], out: Path, *, short: bool = False) -> dict[str, Any]:
    """Measure what the file does not hold yet, and write it after every point.

    Raises:
        ValueError: the file was measured on another machine, or the one is a short run and the other is none.
    """
    import torch

    from zoquant.bench.machine import machine

    found: dict[str, Any] = {"kind": "growth", "short": short, "machine": machine(torch.device("cpu")), "points": []}
    if out.exists():
        known = json.loads(out.read_text(encoding="utf-8"))
        for name in ("short", "machine"):
            if known[name] != found[name]:
                raise ValueError(
                    f"{out}: {name} is {known[name]!r}, expected {found[name]!r}: points of two runs do not lie on one "
                    "line. Choose another file with --out."
                )
        found = known
    done = [Point(**{name: each[name] for name in asdict(todo[0])}) for each in found["points"]]
    for point in todo:
        if point not in done:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found["points"].append(pool.apply(measure, (point,)))
            out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found
