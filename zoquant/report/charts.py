"""The figures of a report: what is drawn of one run, and of several in one picture."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from zoquant.report.markup import Markup, figure, joined, numbers, shown, tag
from zoquant.report.run_reading import Recorded, finite, metrics_of, thinned
from zoquant.report.svg import COLORS, DASHES, Point, Series, histogram, line_chart
from zoquant.tasks.objective import OBJECTIVES

_BINS = 31
_SMOOTHING = 0.95


def loss_figure(runs: Sequence[Recorded]) -> Markup:
    """Return what training makes smaller, mostly the loss: raw and smoothed of one run, smoothed alone of several."""
    series = [Series(run.name, thinned(_smooth(run)), number) for number, run in enumerate(runs)]
    if len(runs) == 1:
        series.append(Series("raw", runs[0].points("loss"), faint=True))
    caption = "Thin: every step. Thick: smoothed." if len(runs) == 1 else "Smoothed."
    label = " or ".join(dict.fromkeys(_smaller(run.settings) for run in runs))
    name = "loss" if label == "loss (nats)" else "objective"
    return _lines(f"Training {name}", f"Smoothed {name} of {_ends(series)}.", series, label, caption)


def metric_figures(runs: Sequence[Recorded]) -> Markup:
    """Return a figure for everything that the evaluations measured."""
    names = dict.fromkeys(name for run in runs for line in run.evaluations for name in metrics_of(line))
    return joined(_metric(runs, name) for name in names)


def _metric(runs: Sequence[Recorded], name: str) -> Markup:
    said = name.removeprefix("eval_").replace("_", " ")
    spans = [_intervals(run, name) for run in runs]
    series = [
        Series(run.name, run.evaluated(name), number, marked=True, spans=spans[number])
        for number, run in enumerate(runs)
    ]
    caption = "Bars: 95 % confidence intervals." if any(spans) else ""
    return _lines(f"Held-out {said}", f"Held-out {said} of {_ends(series)}.", series, said, caption)


def _ends(series: Sequence[Series]) -> str:
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


def derivative_figure(run: Recorded) -> Markup:
    """Return how the derivatives of a run are distributed."""
    values = sorted(value for line in run.steps if (value := finite(line, "derivative")) is not None)
    if not values:
        return Markup("")
    bins = _bins(values)
    cut = sum(line.get("clipped") is True for line in run.steps)
    told = (
        f"Median {statistics.median(values):.3g}, from {values[0]:.3g} to {values[-1]:.3g}; {cut} of {len(values)} "
        "steps were clipped."
    )
    title = "Distribution of the derivative"
    rows = [[f"{low:.4g}", f"{high:.4g}", count] for low, high, count in bins]
    return figure(
        title,
        histogram(title, told, bins, "derivative, before clipping"),
        tag("figcaption", told),
        numbers(title, ["from", "to", "steps"], rows),
    )


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


def step_figures(run: Recorded) -> Markup:
    """Return what else is known of each step: share moved, learning rate, time."""
    told = (
        ("moved", "Share of the values that a probe moved", "share", "After the cast to the dtype that stores them."),
        ("lr", "Learning rate", "rate", ""),
        ("seconds", "Time of a step", "seconds", ""),
        ("overhead", "Time of a step ÷ time of its forwards", "ratio", "1 is the floor: nothing but forwards."),
    )
    return joined(
        _lines(
            title,
            f"From {points[0][1]:.4g} at first to {points[-1][1]:.4g} at last.",
            [Series(run.name, points)],
            axis,
            caption,
        )
        for name, title, axis, caption in told
        if (points := run.points(name))
    )


def _smaller(settings: Mapping[str, Any]) -> str:
    """Return what the training of some settings makes smaller, with its unit: the loss, minus a metric, a function."""
    objective = settings.get("objective", "loss")
    if objective == "loss":
        return "loss (nats)"
    return f"objective: −{objective}" if objective in OBJECTIVES else f"objective: {objective!s:.40}"


def _smooth(run: Recorded) -> list[Point]:
    points = run.stepwise("loss")
    return list(zip([x for x, _ in points], smoothed([y for _, y in points]), strict=True))


def smoothed(values: Sequence[float]) -> list[float]:
    """Return an exponential moving average without the pull of its start."""
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = _SMOOTHING * average + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        result.append(average / weight)
    return result


def _lines(title: str, told: str, series: Sequence[Series], axis: str, caption: str) -> Markup:
    """Return lines over the steps with their legend and their numbers; nothing where there is no point."""
    drawn = [each for each in series if each.points]
    if not drawn:
        return Markup("")
    if len(drawn) == 1 and len(drawn[0].points) > 1 and len({y for _, y in drawn[0].points}) == 1:
        return figure(
            title, tag("p", f"The same at every step: {shown(drawn[0].points[0][1])}."), tag("figcaption", caption)
        )
    below = [_legend(drawn)] if len([each for each in drawn if not each.faint]) > 1 else []
    if caption:
        below.append(tag("figcaption", caption))
    columns = [dict(each.points) for each in drawn]
    rows = [
        [f"{step:g}", *(shown(column[step]) if step in column else "" for column in columns)]
        for step in sorted({x for column in columns for x in column})
    ]
    names = ["smoothed", "raw"] if any(each.faint for each in drawn) else [each.name for each in drawn]
    return figure(title, line_chart(title, told, drawn, "step", axis), *below, numbers(title, ["step", *names], rows))


def _legend(series: Sequence[Series]) -> Markup:
    return tag("ul", *(tag("li", key_of(each.number), each.name) for each in series if not each.faint), class_="legend")


def key_of(number: int) -> Markup:
    """Return the piece of line that stands for a run in legends and tables."""
    dash = DASHES[number % len(DASHES)]
    line = tag("line", x1=1, y1=5, x2=25, y2=5, class_=f"c{number % COLORS} line", stroke_dasharray=dash)
    return tag("svg", line, viewBox="0 0 26 10", class_="key", aria_hidden="true")
