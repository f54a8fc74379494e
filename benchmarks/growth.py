"""How step time and memory grow with model size, views, batch and directions: points, straight lines and a plot.

    python -m benchmarks.growth --out benchmarks/results/growth.json --plot docs/growth.png --largest 100
    python -m benchmarks.growth --short --out growth.json

Models are random: llama shapes with Q4_1-like affine words in groups of 32. Every point is measured in a process of its
own and written at once, so a run that stops goes on where it stopped.
"""

import argparse
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

WIDTHS = {15: (256, 6, 16000), 40: (512, 8, 16000), 135: (576, 30, 49152), 360: (960, 32, 49152),
          1100: (2048, 22, 32000), 3200: (3072, 28, 32000), 7000: (4096, 32, 32000)}  # fmt: skip
"""Million weights, about -> hidden size, layers, vocabulary."""


@dataclass(frozen=True)
class Point:
    """What one process measures.

    Attributes:
        sweep: what is varied: `size`, `views`, `batch` or `directions`.
        size: a key of `WIDTHS`.
        share: every how-many-th view is attached.
        batch: rows.
        directions: probes of a step, two forwards each.
        rounds: repetitions.
    """

    sweep: str
    size: int = 40
    share: int = 1
    batch: int = 4
    directions: int = 1
    rounds: int = 5


SWEEPS: dict[str, tuple[str, str]] = {
    "size": ("weights", "step_seconds"),
    "views": ("values", "beside_seconds"),
    "batch": ("batch", "step_seconds"),
    "directions": ("directions", "step_seconds"),
    "memory": ("weights", "peak_bytes"),
}
"""Sweep -> what is varied, and what grows with it. Memory is that of the sweep over sizes."""


def points(largest: int, rounds: int = 5) -> list[Point]:
    """Return what a run measures, models of up to so many million weights."""
    base = Point("size", rounds=rounds)
    return [
        *(replace(base, size=size) for size in WIDTHS if size <= largest),
        *(replace(base, sweep="views", share=share) for share in (8, 4, 2, 1)),
        *(replace(base, sweep="batch", batch=batch) for batch in (1, 2, 4, 8, 16)),
        *(replace(base, sweep="directions", directions=count) for count in (1, 2, 4, 8)),
    ]


def measure(point: Point) -> dict[str, Any]:
    """Return one point with its figures: times in seconds, medians; peak memory of its process in bytes."""
    import zoquant
    from zoquant.bench.sample import sample_ids, sample_loss
    from zoquant.bench.timing import in_turn, spread
    from zoquant.memory import peak_rss_bytes

    model = _model(*WIDTHS[point.size])
    ids = sample_ids(model, point.batch, 16)
    views = zoquant.attach(model)
    views = zoquant.attach(model, include=list(views.keys[:: point.share]))
    optimizer = zoquant.ZOSGD(views, lr=0.0, probes=point.directions)
    times = in_turn(
        {
            "forward": lambda: sample_loss(model, ids),
            "step": lambda: optimizer.step(lambda: sample_loss(model, ids)),
            "beside": lambda: optimizer.step(lambda: 1.0),
        },
        point.rounds,
    )
    weights = sum(each.rows * each.columns for each in model.modules() if hasattr(each, "decode_rows"))
    medians = {f"{name}_seconds": spread(found)["median"] for name, found in times.items()}
    return {**asdict(point), "weights": weights, "values": views.trainable, **medians, "peak_bytes": peak_rss_bytes()}


def _model(width: int, layers: int, vocabulary: int) -> Any:
    import torch
    import transformers
    from torch import nn

    from zoquant.native import AffineWeight, FieldSpec, PackedWords, QuantEmbedding, QuantLinear, Values
    from zoquant.native.meta import WithoutWeights, forget_weights, replace_module
    from zoquant.native.values import row_groups

    def packed(rows: int, columns: int) -> AffineWeight:
        words = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
        scale, shift = ((torch.rand(rows, columns // 32) * 0.01 * by).half() for by in (1, 8))
        fields = [FieldSpec(name, "scale", torch.float16) for name in ("d", "m")]
        return AffineWeight(
            "4-bit g32", PackedWords(words, 4, columns), Values(fields[0], scale, row_groups),
            shift=Values(fields[1], shift, row_groups),
        )  # fmt: skip

    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=-(-width * 8 // 3 // 64) * 64, num_hidden_layers=layers,
        num_attention_heads=width // 64, vocab_size=vocabulary,
    )  # fmt: skip
    with WithoutWeights():
        model: nn.Module = transformers.LlamaForCausalLM(config)
    forget_weights(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            replace_module(
                model, path, QuantLinear(packed(module.out_features, module.in_features), compute_dtype=torch.float32)
            )
        elif isinstance(module, nn.Embedding):
            replace_module(model, path, QuantEmbedding(packed(module.num_embeddings, module.embedding_dim)))
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(torch.ones(value.shape), requires_grad=False)
    return model.eval().requires_grad_(False)


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Return the straight line through points by least squares: value at zero, slope, and R²."""
    slope, fixed = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (fixed + slope * np.asarray(x))
    spread = float(((np.asarray(y) - np.mean(y)) ** 2).sum())
    return {"fixed": float(fixed), "each": float(slope), "r2": 1 - float((rest**2).sum()) / spread if spread else 1.0}


def fits(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the line of each sweep that has three points or more."""
    lines: dict[str, dict[str, Any]] = {}
    for name, (x, y) in SWEEPS.items():
        own = [each for each in found if each["sweep"] == ("size" if name == "memory" else name)]
        if len(own) >= 3:
            lines[name] = {"x": x, "y": y, **line([each[x] for each in own], [each[y] for each in own])}
    return lines


def run(todo: Sequence[Point], out: Path) -> dict[str, Any]:
    """Measure what the file does not hold yet, and write it after every point."""
    import torch

    from zoquant.bench.machine import machine

    found: dict[str, Any] = {"kind": "growth", "points": []}
    if out.exists():
        found = json.loads(out.read_text(encoding="utf-8"))
    found["machine"] = machine(torch.device("cpu"))
    fields = asdict(todo[0]).keys()
    known = [{name: each[name] for name in fields} for each in found["points"]]
    for point in todo:
        if asdict(point) not in known:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found["points"].append(pool.apply(measure, (point,)))
            out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw every sweep with its line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = fits(found["points"])
    figure, axes = pyplot.subplots(1, len(lines), figsize=(4 * len(lines), 3.5), squeeze=False)
    for axis, (name, each) in zip(axes[0], lines.items(), strict=True):
        own = [point for point in found["points"] if point["sweep"] == ("size" if name == "memory" else name)]
        x = np.array([point[each["x"]] for point in own])
        axis.plot(x, [point[each["y"]] for point in own], "o")
        axis.plot(x, each["fixed"] + each["each"] * x, "-")
        axis.set(title=f"{name}, R² {each['r2']:.3f}", xlabel=each["x"], ylabel=each["y"].replace("_", " "))
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure what is missing and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/growth.json"))
    parser.add_argument("--plot", type=Path, help="a PNG file")
    parser.add_argument("--largest", type=int, default=360, help="million weights of the largest model")
    parser.add_argument("--short", action="store_true", help="two rounds and the smallest model")
    chosen = parser.parse_args()
    todo = points(15 if chosen.short else chosen.largest, 2 if chosen.short else 5)
    found = run([replace(each, size=15) for each in todo] if chosen.short else todo, chosen.out)
    for name, each in fits(found["points"]).items():
        print(f"{name}: {each['y']} = {each['fixed']:.4g} + {each['each']:.4g} x {each['x']}, R² {each['r2']:.4f}")
    if chosen.plot is not None:
        plot(found, chosen.plot)


if __name__ == "__main__":
    main()
