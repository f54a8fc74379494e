"""Charts as shapes, which the page draws as SVG. Colors come from its style, so that they follow light and dark."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zoquant.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axes, Point, tick_text, ticks
from zoquant.report.moves import Moves, Part, named

COLORS = 8
"""Series are numbered; the style has so many colors, and every fourth number another dash."""
DASHES = (None, "7 3", "2 3", "8 3 2 3")
_CELL, _ROW, _MARGIN, _LETTER = 44, 14, 46, 7.0
"""Of a heat map: width and height of a cell, room for the names of the layers, width of a letter."""


Attributes = dict[str, str | float | None]


@dataclass(frozen=True)
class Shape:
    """An element of SVG: attributes of None are left out, `hint` is told where the pointer rests."""

    name: str
    attributes: Attributes
    text: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture: title and `told` are for those who do not see it, shapes go from back to front, `kind` is a style."""

    title: str
    told: str
    shapes: Sequence[Shape]
    kind: str = "chart"
    width: float = WIDTH
    height: float = HEIGHT


@dataclass(frozen=True)
class Series:
    """A line of a chart through finite points.

    `number` chooses its color and dash; a faint one lies behind the others and is not in the legend, a marked one has a
    dot at every point; spans are x, low and high of error bars.
    """

    name: str
    points: Sequence[Point]
    number: int = 0
    faint: bool = False
    marked: bool = False
    spans: Sequence[tuple[float, float, float]] = ()


def line_chart(title: str, told: str, series: Sequence[Series], x_label: str, y_label: str) -> Chart:
    """Return a chart of lines, at least one with a point."""
    points = [point for each in series for point in each.points]
    ends = [end for each in series for _, low, high in each.spans for end in (low, high)]
    axes = Axes.over([x for x, _ in points], [y for _, y in points] + ends)
    lines = [shape for each in sorted(series, key=lambda each: not each.faint) for shape in _line(each, axes)]
    return Chart(title, told, [*_frame(axes, x_label, y_label), *lines])


def histogram(title: str, told: str, bins: Sequence[tuple[float, float, int]], x_label: str) -> Chart:
    """Return a chart of counts: a bar for each bin of low, high and count."""
    axes = Axes((bins[0][0], bins[-1][1]), (0.0, max(count for _, _, count in bins) * 1.05))
    bars = []
    for low, high, count in bins:
        (left, top), (right, bottom) = axes.place(low, count), axes.place(high, 0)
        box = _box(left + 0.5, top, max(right - left - 1, 0.5), bottom - top)
        bars.append(Shape("rect", {**box, "class": "c0 bar"}, hint=f"{low:.4g} to {high:.4g}: {count}"))
    return Chart(title, told, [*_frame(axes, x_label, "steps"), *bars])


def heat_map(title: str, told: str, moves: Moves) -> Chart:
    """Return a row a layer, a column a kind, darker where training moved more."""
    slanted, most = _LETTER * max(map(len, moves.kinds)), max(moves.rms.values())
    top = 24 + 0.62 * slanted
    shapes = [_label("layer", _MARGIN - 6, top - 8, "end")]
    for column, kind in enumerate(moves.kinds):
        at = {"x": _1(_MARGIN + _CELL * (column + 0.5)), "y": _1(top - 8)}
        shapes.append(Shape("text", {**at, "transform": f"rotate(-38 {at['x']} {at['y']})"}, kind))
    for row, layer in enumerate(moves.layers):
        y = top + _ROW * row
        shapes.append(_label("none" if layer is None else str(layer), _MARGIN - 6, y + _ROW - 3, "end"))
        shapes += [
            _cell(moves, (layer, kind), _MARGIN + _CELL * column, y, most) for column, kind in enumerate(moves.kinds)
        ]
    bottom = top + _ROW * len(moves.layers) + 14
    width = max(_MARGIN + _CELL * len(moves.kinds) + 0.8 * slanted, 320)
    return Chart(title, told, [*shapes, *_scale(bottom, most)], "map", width, bottom + 34)


def key_line(number: int) -> Shape:
    """Return the piece of line that stands for a run in legends and tables."""
    ends: Attributes = {"x1": 1, "y1": 5, "x2": 25, "y2": 5}
    return Shape("line", {**ends, "class": f"c{number % COLORS} line", "stroke-dasharray": _dash(number)})


def _line(series: Series, axes: Axes) -> Iterator[Shape]:
    color, faint = f"c{series.number % COLORS}", series.faint
    placed = " ".join(f"{x:.1f},{y:.1f}" for x, y in (axes.place(*point) for point in series.points))
    dash = None if faint else _dash(series.number)
    kind = f"{color} {'faint' if faint else 'line'}"
    yield Shape("polyline", {"points": placed, "class": kind, "stroke-dasharray": dash})
    for x, low, high in series.spans:
        yield _segment(axes.place(x, low), axes.place(x, high), f"{color} span")
    if series.marked or len(series.points) == 1:
        for point in series.points:
            x, y = axes.place(*point)
            dot: Attributes = {"cx": _1(x), "cy": _1(y), "r": 3.5, "class": f"{color} dot"}
            yield Shape("circle", dot, hint=f"{point[0]:g}: {point[1]:.4g}")


def _frame(axes: Axes, x_label: str, y_label: str) -> Iterator[Shape]:
    """Yield grid, numbers and names of the axes."""
    for tick in ticks(*axes.y):
        x, y = axes.place(axes.x[0], tick)
        yield _segment((x, y), (WIDTH - RIGHT, y), "grid")
        yield _label(tick_text(tick, *axes.y), x - 9, y + 4, "end")
    for tick in ticks(*axes.x):
        x, y = axes.place(tick, axes.y[0])
        yield _segment((x, y), (x, y + 4), "axis")
        yield _label(tick_text(tick, *axes.x), x, y + 17, "middle")
    low = axes.place(axes.x[0], axes.y[0])
    yield _segment(low, (WIDTH - RIGHT, low[1]), "axis")
    yield _label(x_label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle")
    middle = _1((TOP + HEIGHT - BOTTOM) / 2)
    turned: Attributes = {"x": 11, "y": middle, "text-anchor": "middle", "transform": f"rotate(-90 11 {middle})"}
    yield Shape("text", turned, y_label)


def _cell(moves: Moves, part: Part, x: float, y: float, most: float) -> Shape:
    box, value = _box(x + 0.5, y + 0.5, _CELL - 1, _ROW - 1), moves.rms.get(part)
    if value is None:
        return Shape("rect", {**box, "class": "absent"}, hint=f"{named(part)}: nothing moves")
    shade = _shade(value / most if most else 0.0)
    return Shape("rect", {**box, "class": "heat", "fill-opacity": shade}, hint=f"{named(part)}: {value:.4g}")


def _scale(y: float, most: float) -> list[Shape]:
    """Return the shades beside the numbers that they stand for."""
    shades = [
        Shape("rect", {**_box(_MARGIN + 12 * each, y, 12, 10), "class": "heat", "fill-opacity": _shade(each / 11)})
        for each in range(12)
    ]
    ends = [_label("0", _MARGIN, y + 25, "start"), _label(f"{most:.3g}", _MARGIN + 144, y + 25, "end")]
    return [*shades, *ends]


def _segment(start: Point, end: Point, kind: str) -> Shape:
    return Shape("line", {"x1": _1(start[0]), "y1": _1(start[1]), "x2": _1(end[0]), "y2": _1(end[1]), "class": kind})


def _label(text: str, x: float, y: float, anchor: str) -> Shape:
    """Return a text whose start, middle or end lies at x."""
    return Shape("text", {"x": _1(x), "y": _1(y), "text-anchor": anchor}, text)


def _box(x: float, y: float, width: float, height: float) -> Attributes:
    return {"x": _1(x), "y": _1(y), "width": _1(width), "height": _1(height)}


def _dash(number: int) -> str | None:
    return DASHES[number % len(DASHES)]


def _shade(share: float) -> str:
    return f"{0.05 + 0.95 * share:.3f}"


def _1(value: float) -> str:
    return f"{value:.1f}"
