"""The straight line through each sweep: as numbers, in words, and drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STRAIGHT = 0.98
"""R² from which on points are said to lie on a straight line."""


@dataclass(frozen=True)
class Sweep:
    """What grows with what.

    Attributes:
        points: the sweep of the points that are taken.
        x: what is varied.
        y: what grows with it.
        x_unit: how many of x people count as one, and what they call it.
        y_unit: the same for y.
        why: why it grows so.
    """

    points: str
    x: str
    y: str
    x_unit: tuple[float, str]
    y_unit: tuple[float, str]
    why: str


SWEEPS: dict[str, Sweep] = {
    "size": Sweep("size", "weights", "step_seconds", (1e9, "billion weights"), (1, "s"),
                  "a forward decodes and multiplies each weight once, a step does two"),
    "views": Sweep("views", "values", "beside_seconds", (1e6, "million values"), (1e-3, "ms"),
                   "beside its forwards a step draws noise for each value and writes the sum, three times"),
    "batch": Sweep("batch", "batch", "step_seconds", (1, "row"), (1e-3, "ms"),
                   "each row adds its products; decoding and all that is beside the forwards is there once"),
    "directions": Sweep("directions", "directions", "step_seconds", (1, "direction"), (1e-3, "ms"),
                        "each direction adds two forwards"),
    "together": Sweep("together", "directions", "step_seconds", (1, "direction"), (1e-3, "ms"),
                      "all directions share one forward, and each adds its rows, twice the batch"),
    "memory": Sweep("size", "weights", "peak_bytes", (1e9, "billion weights"), (2**20, "MiB"),
                    "a Q4_1 weight takes 5 bits, float16 base and float32 delta of its block one bit each; Python and "
                    "its libraries are there at zero"),
}  # fmt: skip
"""By name. Memory is that of the sweep over sizes."""


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Return the straight line through points by least squares: value at zero, slope, and R²."""
    slope, fixed = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (fixed + slope * np.asarray(x))
    spread = float(((np.asarray(y) - np.mean(y)) ** 2).sum())
    return {"fixed": float(fixed), "each": float(slope), "r2": 1 - float((rest**2).sum()) / spread if spread else 1.0}


def fits(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the line of each sweep that has three points or more."""
    lines: dict[str, dict[str, float]] = {}
    for name, sweep in SWEEPS.items():
        own = _own(found, sweep)
        if len(own) >= 3:
            lines[name] = line([each[sweep.x] for each in own], [each[sweep.y] for each in own])
    return lines


def told(name: str, fit: Mapping[str, float]) -> str:
    """Return what a line says in words: how much grows with what, whether straight, and why."""
    sweep = SWEEPS[name]
    (many, what), (unit, called) = sweep.x_unit, sweep.y_unit
    shape = "a straight line" if fit["r2"] >= STRAIGHT else "no straight line"
    grown = f"{fit['each'] * many / unit:,.4g} {called} for each {what}, {fit['fixed'] / unit:,.4g} {called} at zero"
    return f"{name}, {sweep.y.replace('_', ' ')}: {grown}; {shape}, R² {fit['r2']:.4f}. Why: {sweep.why}."


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw every sweep with its line, two rows of panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = fits(found["points"])
    columns = -(-len(lines) // 2)
    figure, axes = pyplot.subplots(2, columns, figsize=(4.2 * columns, 7), squeeze=False)
    for axis in axes.flat[len(lines) :]:
        axis.set_axis_off()
    for axis, (name, each) in zip(axes.flat, lines.items(), strict=False):
        sweep, (many, what), (unit, called) = SWEEPS[name], SWEEPS[name].x_unit, SWEEPS[name].y_unit
        x = np.array([point[sweep.x] for point in _own(found["points"], sweep)], float)
        y = np.array([point[sweep.y] for point in _own(found["points"], sweep)], float)
        ends = np.array([0.0, x.max()])
        axis.plot(ends / many, (each["fixed"] + each["each"] * ends) / unit, "-", color="0.6")
        axis.plot(x / many, y / unit, "o")
        axis.set(title=f"{name}, R² {each['r2']:.4f}", xlabel=what, ylabel=f"{sweep.y.rpartition('_')[0]}, {called}")
        axis.set_ylim(0, 1.1 * y.max() / unit)
    figure.suptitle(found["machine"]["processor"], fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _own(found: Sequence[Mapping[str, Any]], sweep: Sweep) -> list[Mapping[str, Any]]:
    return [each for each in found if each["sweep"] == sweep.points]
