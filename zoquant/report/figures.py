"""The figures of a report: what is drawn of one run, and of several in one picture."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoquant.report.axes import Point
from zoquant.report.charts import Chart, Series, heat_map, histogram, line_chart
from zoquant.report.moves import Moves, named
from zoquant.report.run_reading import Recorded, finite, metrics_of, thinned
from zoquant.report.wording import shown, words
from zoquant.tasks.objective import OBJECTIVES

_BINS = 31
_CELLS = 4000
_SMOOTHING = 0.95


@dataclass(frozen=True)
class Figure:
    """A picture under its title, or a sentence `instead` of one, with a caption and the numbers behind it as a table.

    `legend` has number and name of each line, where there are several.
    """

    title: str
    chart: Chart | None
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    caption: str = ""
    instead: str = ""
    legend: Sequence[tuple[int, str]] = ()
    wide: bool = False


def figures_of(run: Recorded) -> list[Figure]:
    """Return everything that is drawn of one run."""
    heat = [] if run.moves is None else [_heat(run.moves)]
    return [*shared_figures([run]), *_derivative(run), *_of_steps(run), *heat]


def shared_figures(runs: Sequence[Recorded]) -> list[Figure]:
    """Return what one picture shows of several runs: what training makes smaller, and what evaluations measured."""
    names = dict.fromkeys(name for run in runs for line in run.evaluations for name in metrics_of(line))
    return [*_loss(runs), *(figure for name in names for figure in _metric(runs, name))]


def smoothed(values: Sequence[float]) -> list[float]:
    """Return an exponential moving average without the pull of its start."""
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = _SMOOTHING * average + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        result.append(average / weight)
    return result


def _loss(runs: Sequence[Recorded]) -> Iterator[Figure]:
    """Yield what training makes smaller, mostly the loss: raw and smoothed of one run, smoothed alone of several."""
    series = [Series(run.name, thinned(_smooth(run)), number) for number, run in enumerate(runs)]
    if len(runs) == 1:
        series.append(Series("raw", runs[0].points("loss"), faint=True))
    caption = "Thin: every step. Thick: smoothed." if len(runs) == 1 else "Smoothed."
    label = " or ".join(dict.fromkeys(_smaller(run.settings) for run in runs))
    name = "loss" if label == "loss (nats)" else "objective"
    yield from _lines(f"Training {name}", f"Smoothed {name} of {_ends(series)}.", series, label, caption)


def _smaller(settings: Mapping[str, Any]) -> str:
    """Return what the training of some settings makes smaller, with its unit: the loss, minus a metric, a function."""
    objective = settings.get("objective", "loss")
    if objective == "loss":
        return "loss (nats)"
    return f"objective: −{objective}" if objective in OBJECTIVES else f"objective: {objective!s:.40}"


def _metric(runs: Sequence[Recorded], name: str) -> Iterator[Figure]:
    said = words(name.removeprefix("eval_"))
    spans = [_intervals(run, name) for run in runs]
    series = [
        Series(run.name, run.evaluated(name), number, marked=True, spans=spans[number])
        for number, run in enumerate(runs)
    ]
    caption = "Bars: 95 % confidence intervals." if any(spans) else ""
    yield from _lines(f"Held-out {said}", f"Held-out {said} of {_ends(series)}.", series, said, caption)


def _ends(series: Iterable[Series]) -> str:
    """Return the first and the last value of each series, in words."""
    drawn = [each for each in series if each.points and not each.faint]
    return "; ".join(
        f"{each.name}: {each.points[0][1]:.4g} at first, {each.points[-1][1]:.4g} at last" for each in drawn
    )


def _intervals(run: Recorded, name: str) -> list[tuple[float, float, float]]:
    """Return step, low and high of each confidence interval of a metric."""
    found = []
    for line in run.evaluations:
        ends = line.get(f"{name}_interval")
        if isinstance(ends, list) and len(ends) == 2:
            low, high = (finite({"end": end}, "end") for end in ends)
            if low is not None and high is not None:
                found.append((float(line["step"]), low, high))
    return found


def _derivative(run: Recorded) -> Iterator[Figure]:
    """Yield how the derivatives of a run are distributed."""
    values = sorted(value for line in run.steps if (value := finite(line, "derivative")) is not None)
    if not values:
        return
    bins = _bins(values)
    cut = sum(line.get("clipped") is True for line in run.steps)
    told = (
        f"Median {statistics.median(values):.3g}, from {values[0]:.3g} to {values[-1]:.3g}; {cut} of {len(values)} "
        "steps were clipped."
    )
    title = "Distribution of the derivative"
    rows = [[f"{low:.4g}", f"{high:.4g}", count] for low, high, count in bins]
    chart = histogram(title, told, bins, "derivative, before clipping")
    yield Figure(title, chart, ["from", "to", "steps"], rows, caption=told)


def _bins(values: Sequence[float]) -> list[tuple[float, float, int]]:
    """Return low, high and count of equal bins from the smallest value to the largest."""
    low, high = values[0], values[-1]
    if low == high:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    width = (high - low) / _BINS
    counts = [0] * _BINS
    for value in values:
        counts[min(int((value - low) / width), _BINS - 1)] += 1
    return [(low + width * place, low + width * (place + 1), count) for place, count in enumerate(counts)]


def _of_steps(run: Recorded) -> Iterator[Figure]:
    """Yield what else is known of each step: share moved, learning rate, time."""
    told = (
        ("moved", "Share of the values that a probe moved", "share", "After the cast to the dtype that stores them."),
        ("lr", "Learning rate", "rate", ""),
        ("seconds", "Time of a step", "seconds", ""),
        ("overhead", "Time of a step ÷ time of its forwards", "ratio", "1 is the floor: nothing but forwards."),
    )
    for name, title, axis, caption in told:
        if points := run.points(name):
            said = f"From {points[0][1]:.4g} at first to {points[-1][1]:.4g} at last."
            yield from _lines(title, said, [Series(run.name, points)], axis, caption)


def _smooth(run: Recorded) -> list[Point]:
    points = run.stepwise("loss")
    return list(zip([x for x, _ in points], smoothed([y for _, y in points]), strict=True))


def _lines(title: str, told: str, series: Sequence[Series], axis: str, caption: str) -> Iterator[Figure]:
    """Yield lines over the steps with their legend and their numbers; nothing where there is no point."""
    drawn = [each for each in series if each.points]
    if not drawn:
        return
    if len(drawn) == 1 and len(drawn[0].points) > 1 and len({y for _, y in drawn[0].points}) == 1:
        instead = f"The same at every step: {shown(drawn[0].points[0][1])}."
        yield Figure(title, None, caption=caption, instead=instead)
        return
    thick = [(each.number, each.name) for each in drawn if not each.faint]
    columns = [dict(each.points) for each in drawn]
    rows = [
        [f"{step:g}", *(shown(column[step]) if step in column else "" for column in columns)]
        for step in sorted({x for column in columns for x in column})
    ]
    names = ["smoothed", "raw"] if any(each.faint for each in drawn) else [each.name for each in drawn]
    chart = line_chart(title, told, drawn, "step", axis)
    yield Figure(title, chart, ["step", *names], rows, caption, legend=thick if len(thick) > 1 else ())


def _heat(moves: Moves) -> Figure:
    title = f"Size of the delta by layer and kind ({moves.space} space)"
    part, size = max(moves.rms.items(), key=lambda item: item[1])
    told = (
        f"Root mean square of the delta: from {min(moves.rms.values()):.3g} to {size:.3g}, largest in {named(part)}. "
        "Every direction moves all values alike, so an even map is what one run with one rate gives."
    )
    rows = [
        ["none" if layer is None else layer, *(_size(moves, layer, kind) for kind in moves.kinds)]
        for layer in moves.layers
    ]
    few = len(moves.layers) * len(moves.kinds) <= _CELLS
    return Figure(
        title, heat_map(title, told, moves) if few else None, ["layer", *moves.kinds], rows,
        f"{told} An empty frame: nothing moves there.",
        "" if few else f"More than {_CELLS} cells: see the numbers.",
        wide=True,
    )  # fmt: skip


def _size(moves: Moves, layer: int | None, kind: str) -> str:
    value = moves.rms.get((layer, kind))
    return "–" if value is None else shown(value)
