"""Charts as inline SVG. Colors come from the style of the page, so that they follow light and dark."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zoquant.report.markup import Markup, tag

COLORS = 8
"""Series are numbered; the style has so many colors, and every fourth number another dash."""
DASHES = (None, "7 3", "2 3", "8 3 2 3")
_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 10, 42
_TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: what the legend says.
        points: x and y, finite.
        number: which color and dash.
        faint: drawn thin, behind the others, and not in the legend.
        marked: a dot at every point.
        spans: x, low and high of the error bars.
    """

    name: str
    points: Sequence[Point]
    number: int = 0
    faint: bool = False
    marked: bool = False
    spans: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Axes:
    """Where numbers lie in a chart."""

    x: Point
    y: Point

    @classmethod
    def over(cls, xs: Sequence[float], ys: Sequence[float]) -> "Axes":
        """Return axes with room for all of the numbers."""
        return cls(_room(min(xs), max(xs), 0), _room(min(ys), max(ys), 0.05))

    def place(self, x: float, y: float) -> Point:
        """Return where a point lies in the picture."""
        return (
            _LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (_HEIGHT - _TOP - _BOTTOM),
        )


def line_chart(title: str, told: str, series: Sequence[Series], x_label: str, y_label: str) -> Markup:
    """Return a chart of lines.

    Args:
        title: what is drawn, for those who do not see it.
        told: what the chart says, in a sentence.
        series: at least one with a point.
        x_label: what lies to the right.
        y_label: what lies upwards.
    """
    points = [point for each in series for point in each.points]
    ends = [end for each in series for _, low, high in each.spans for end in (low, high)]
    axes = Axes.over([x for x, _ in points], [y for _, y in points] + ends)
    lines = [part for each in sorted(series, key=lambda each: not each.faint) for part in _drawn(each, axes)]
    return picture(title, told, *frame(axes, x_label, y_label), *lines, class_="chart")


def _drawn(series: Series, axes: Axes) -> Iterator[Markup]:
    color = f"c{series.number % COLORS}"
    placed = " ".join(f"{x:.1f},{y:.1f}" for x, y in (axes.place(*point) for point in series.points))
    dash = None if series.faint else DASHES[series.number % len(DASHES)]
    yield tag("polyline", points=placed, class_=f"{color} {'faint' if series.faint else 'line'}", stroke_dasharray=dash)
    for x, low, high in series.spans:
        yield segment(axes.place(x, low), axes.place(x, high), f"{color} span")
    if series.marked or len(series.points) == 1:
        for point in series.points:
            x, y = axes.place(*point)
            yield tag(
                "circle",
                tag("title", f"{point[0]:g}: {point[1]:.4g}"),
                cx=_1(x),
                cy=_1(y),
                r=3.5,
                class_=f"{color} dot",
            )


def histogram(title: str, told: str, bins: Sequence[tuple[float, float, int]], x_label: str) -> Markup:
    """Return a chart of counts: a bar for each bin of low, high and count."""
    axes = Axes((bins[0][0], bins[-1][1]), (0.0, max(count for _, _, count in bins) * 1.05))
    bars = []
    for low, high, count in bins:
        (left, top), (right, bottom) = axes.place(low, count), axes.place(high, 0)
        said = tag("title", f"{low:.4g} to {high:.4g}: {count}")
        box = {"x": _1(left + 0.5), "y": _1(top), "width": _1(max(right - left - 1, 0.5)), "height": _1(bottom - top)}
        bars.append(tag("rect", said, class_="c0 bar", **box))
    return picture(title, told, *frame(axes, x_label, "steps"), *bars, class_="chart")


def picture(
    title: str, told: str, *parts: Markup, width: float = _WIDTH, height: float = _HEIGHT, **attributes: str
) -> Markup:
    """Return an SVG with its title and description; it takes the width that there is, up to a quarter above its own."""
    return tag(
        "svg", tag("title", title), tag("desc", told), *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img",
        aria_label=f"{title}. {told}", style=f"max-width:{width * 1.25:.0f}px", **attributes,
    )  # fmt: skip


def frame(axes: Axes, x_label: str, y_label: str) -> Iterator[Markup]:
    """Yield grid, numbers and names of the axes."""
    for tick in ticks(*axes.y):
        x, y = axes.place(axes.x[0], tick)
        yield segment((x, y), (_WIDTH - _RIGHT, y), "grid")
        yield label(tick_text(tick, *axes.y), x - 6, y + 4, "end")
    for tick in ticks(*axes.x):
        x, y = axes.place(tick, axes.y[0])
        yield segment((x, y), (x, y + 4), "axis")
        yield label(tick_text(tick, *axes.x), x, y + 17, "middle")
    low = axes.place(axes.x[0], axes.y[0])
    yield segment(low, (_WIDTH - _RIGHT, low[1]), "axis")
    yield label(x_label, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "middle")
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    yield tag("text", y_label, x=11, y=_1(middle), text_anchor="middle", transform=f"rotate(-90 11 {middle:.1f})")


def segment(start: Point, end: Point, kind: str) -> Markup:
    """Return a straight line."""
    return tag("line", x1=_1(start[0]), y1=_1(start[1]), x2=_1(end[0]), y2=_1(end[1]), class_=kind)


def label(text: str, x: float, y: float, anchor: str) -> Markup:
    """Return a text whose start, middle or end lies at x."""
    return tag("text", text, x=_1(x), y=_1(y), text_anchor=anchor)


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers from low to high, about five."""
    step = tick_step(low, high)
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_step(low: float, high: float) -> float:
    """Return the distance of the ticks: 1, 2 or 5 times a power of ten."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * each for each in (1, 2, 5, 10) if power * each >= rough * 0.999)


def tick_text(value: float, low: float, high: float) -> str:
    """Return a number with as many decimals as tell the ticks of its axis apart."""
    largest = max(abs(low), abs(high))
    if largest >= 1e6 or largest < 1e-3:
        return f"{value:.1e}" if value else "0"
    decimals = max(0, -math.floor(math.log10(tick_step(low, high)) + 1e-9))
    return f"{value + 0.0:,.{decimals}f}"


def _room(low: float, high: float, share: float) -> Point:
    """Return a range a little wider than its numbers, and never empty."""
    if low == high:
        half = abs(low) * 0.05 or 0.5
        return low - half, high + half
    return low - share * (high - low), high + share * (high - low)


def _1(value: float) -> str:
    return f"{value:.1f}"
