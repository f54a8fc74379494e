"""Accuracy over forwards: medians of the seeds, and the range between them."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.study.record import Records
from benchmarks.study.report import median_curve
from benchmarks.study.rows import Row
from zoquant.files.atomic_files import replacing

SHOWN = (
    "default",
    "default, long",
    "default, N/8 forwards",
    "two-point, calibrated",
    "qzo, the best of the grid",
    "qzo, the paper's numbers",
    "first-order, Adam, lr 2e-3",
    "mezo, dense float32, lr 1e-06",
)
"""The rows that are drawn."""


def plot(lines: Sequence[Row], records: Records, to: Path) -> Path:
    """Draw the picture.

    Args:
        lines: the rows of the study.
        records: their results.
        to: the PNG file.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row in lines:
        curve = median_curve(records.of(row)) if row.name in SHOWN else []
        if curve:
            forwards, middle, least, most = zip(*curve, strict=True)
            (drawn,) = axes.plot(forwards, [100 * share for share in middle], ".-", label=row.name)
            lower, upper = [100 * share for share in least], [100 * share for share in most]
            axes.fill_between(forwards, lower, upper, color=drawn.get_color(), alpha=0.2, linewidth=0)
    axes.set_xscale("symlog", linthresh=100)
    axes.set_xlabel("forwards of 16 examples")
    axes.set_ylabel("accuracy on 256 of dev (%)")
    if axes.lines:
        axes.legend(fontsize="small")
    with replacing(to) as temporary, open(temporary, "wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    return to
