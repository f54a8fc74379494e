"""What is measured: a sweep in a process of its own, a size in one each."""

import json
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

WIDTHS = {5: (128, 4, 16000), 15: (256, 6, 16000), 40: (512, 8, 16000), 135: (576, 30, 49152), 360: (960, 32, 49152),
          1100: (2048, 22, 32000), 3200: (3072, 28, 32000), 7000: (4096, 32, 32000)}  # fmt: skip
"""Million weights, about -> hidden size, layers, vocabulary. The first is there for short runs alone."""

LENGTH = 16
"""Tokens a row."""

_LARGE = 1000
"""Million weights from which on five rounds have to do."""


@dataclass(frozen=True)
class Point:
    """What is measured once.

    Attributes:
        sweep: what is varied: `size`, `views`, `batch`, `directions`, each with two forwards, or `together`, directions
            that share one forward.
        size: a key of `WIDTHS`.
        share: every how-many-th layer is attached, see `benchmarks.bench.sample.every_layer`.
        batch: rows.
        directions: probes of a step.
        rounds: repetitions that count.
    """

    sweep: str
    size: int = 135
    share: int = 1
    batch: int = 4
    directions: int = 1
    rounds: int = 11


def points(largest: int, *, short: bool = False) -> list[Point]:
    """Return what a run measures.

    Args:
        largest: million weights of the largest model.
        short: two rounds of the smallest models instead.
    """
    usual = 5 if short else 135
    sizes = [5, 15, 40] if short else [size for size in WIDTHS if 5 < size <= largest]
    base = Point("size", size=usual, rounds=2 if short else 11)
    return [
        *(replace(base, size=size, rounds=min(5, base.rounds) if size > _LARGE else base.rounds) for size in sizes),
        *(replace(base, sweep="views", share=share) for share in (8, 4, 2, 1)),
        *(replace(base, sweep="batch", batch=batch) for batch in (1, 2, 4, 8, 16)),
        *(replace(base, sweep="directions", directions=count) for count in (1, 2, 4, 8)),
        *(replace(base, sweep="together", directions=count) for count in (1, 2, 4, 8)),
    ]


def groups(todo: Sequence[Point]) -> list[list[Point]]:
    """Return which points share a process: those of a sweep; each size has its own, whose memory counts."""
    found: dict[tuple[str, int], list[Point]] = {}
    for point in todo:
        found.setdefault((point.sweep, point.size), []).append(point)
    return list(found.values())


def measure(group: Sequence[Point]) -> list[dict[str, Any]]:
    """Return points of one model with their figures: times in seconds, medians; peak memory of the process in bytes.

    They are measured in turn, so that what slows the machine down for a while does so for all of them.
    """
    from benchmarks.growth.model import random_model
    from zoquant.cli.bench.timing import in_turn, spread
    from zoquant.native import PackedWeight
    from zoquant.training.memory.resident import peak_rss_bytes

    model = random_model(*WIDTHS[group[0].size])
    weights = sum(each.rows * each.columns for each in model.modules() if isinstance(each, PackedWeight))
    made = [_calls(model, point) for point in group]
    contestants = {f"{number} {name}": call for number, (_, calls) in enumerate(made) for name, call in calls.items()}
    times = in_turn(contestants, group[0].rounds, warm_up=1)
    found = []
    for number, (point, (values, calls)) in enumerate(zip(group, made, strict=True)):
        medians = {f"{name}_seconds": spread(times[f"{number} {name}"])["median"] for name in calls}
        found.append({**asdict(point), "weights": weights, "values": values, **medians})
    return [{**each, "peak_bytes": peak_rss_bytes()} for each in found]


def _calls(model: nn.Module, point: Point) -> tuple[int, dict[str, Callable[[], Any]]]:
    """Return how many values a point trains, and what is timed: a forward, a step, and a step without forwards."""
    import zoquant
    from benchmarks.bench.sample import ends, every_layer
    from zoquant.cli.bench.measure import row_losses, sample_ids, sample_loss

    ids = sample_ids(model, point.batch, LENGTH)
    calls: dict[str, Callable[[], Any]] = {"forward": lambda: sample_loss(model, ids)}
    if point.sweep == "together":
        views = zoquant.attach(model, exclude=ends(model))
        batched = zoquant.ZOSGD(views, subspace="rows-columns", probes=point.directions, split=False, lr=0.0)
        calls["step"] = lambda: batched.step(lambda repeat: row_losses(model, ids.repeat(repeat, 1)))
    else:
        views = every_layer(model, point.share)
        optimizer = zoquant.ZOSGD(views, lr=0.0, probes=point.directions)
        calls["step"] = lambda: optimizer.step(lambda: sample_loss(model, ids))
        calls["beside"] = lambda: optimizer.step(lambda: 1.0)
    return views.trainable, calls


def run(todo: Sequence[Point], out: Path, *, short: bool = False) -> dict[str, Any]:
    """Measure what the file does not hold yet, and write it after every group.

    Raises:
        ValueError: the file was measured on another machine, or the one is a short run and the other is none.
    """
    import torch

    from zoquant.cli.bench.machine import machine

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
    for group in groups([point for point in todo if point not in done]):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found["points"] += pool.apply(measure, (group,))
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found
