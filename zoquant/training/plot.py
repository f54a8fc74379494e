"""The picture of a run: loss, derivative and the held-out metric over its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoquant.files.atomic_files import replacing
from zoquant.tasks.objective import OBJECTIVES
from zoquant.training.run_folder import RunFolder

_SMOOTHING = 0.95


def plot_run(folder: RunFolder) -> Path:
    """Draw `loss.png` from the metrics of a run.

    Args:
        folder: the folder of the run.

    Returns:
        The path of the picture.

    Raises:
        CheckpointError: the metrics or the settings are missing or damaged; file and line are named.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = folder.read_metrics()
    steps = [line for line in lines if "loss" in line]
    figure = Figure(figsize=(8, 9), layout="constrained")
    loss, derivative, score = figure.subplots(3, 1, sharex=True)
    x = [line["step"] for line in steps]
    raw = [line["loss"] for line in steps]
    loss.plot(x, raw, color="0.75", linewidth=0.8, label="raw")
    loss.plot(x, smoothed(raw), color="C0", label="smoothed")
    loss.set_ylabel(f"training {_drawable(smaller(folder.read_settings()))}", parse_math=False)
    loss.legend()
    derivative.plot(x, [line["derivative"] for line in steps], color="C1", linewidth=0.8)
    derivative.axhline(0, color="0.5", linewidth=0.5)
    derivative.set_ylabel("derivative")
    found = folder.evaluations()
    score.plot([step for step, _ in found], [e.score.value for _, e in found], "o-", color="C2")
    score.set_ylabel(f"held-out {_drawable(found[0][1].primary)}" if found else "not evaluated", parse_math=False)
    score.set_xlabel("step")
    with replacing(folder.plot) as temporary, open(temporary, "wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    return folder.plot


def smaller(settings: Mapping[str, Any]) -> str:
    """Return what the training of some settings makes smaller, with its unit: the loss, minus a metric, a function."""
    objective = settings.get("objective", "loss")
    if objective == "loss":
        return "loss (nats)"
    return f"objective: −{objective}" if objective in OBJECTIVES else f"objective: {objective!s:.40}"


def _drawable(name: str) -> str:
    """Return the beginning of a name without what fonts cannot take."""
    return name[:60].encode("utf-8", "replace").decode()


def smoothed(values: Sequence[float]) -> list[float]:
    """Return an exponential moving average without the pull of its start."""
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = _SMOOTHING * average + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        result.append(average / weight)
    return result
