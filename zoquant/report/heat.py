"""How far training moved each part of a model: the delta by layer and kind, as numbers and as a heat map."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from zoquant.record.delta import read_delta
from zoquant.report.markup import Markup, figure, numbers, scrolling, shown, tag
from zoquant.report.svg import label, picture

_NUMBER = re.compile(r"\.(\d+)\.")
_CELL, _ROW, _LEFT, _LETTER = 44, 14, 46, 7.0
_CELLS = 4000

Place = tuple[int | None, str]
"""A layer, None outside of the numbered ones, and a kind."""


@dataclass(frozen=True)
class Moves:
    """The size of a delta by layer and kind.

    Attributes:
        rms: root mean square of the delta by layer (None: outside of the numbered layers) and kind.
        space: what delta means.
    """

    rms: Mapping[Place, float]
    space: str

    @classmethod
    def read(cls, path: Path) -> "Moves":
        """Return the sizes in a delta file.

        Raises:
            CheckpointError, ValueRangeError: the file is damaged.
        """
        delta = read_delta(path)
        sums: defaultdict[Place, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for key, value in delta.values.items():
            place = sums[layer_and_kind(key)]
            place[0] += float(value.to(torch.float64).square().sum())
            place[1] += value.numel()
        return cls({place: math.sqrt(total / max(count, 1)) for place, (total, count) in sums.items()}, delta.space)

    @property
    def layers(self) -> list[int | None]:
        """The layers, those without a number first."""
        return sorted({layer for layer, _ in self.rms}, key=lambda layer: -1 if layer is None else layer)

    @property
    def kinds(self) -> list[str]:
        """The kinds, in the order of the model."""
        return list(dict.fromkeys(kind for _, kind in self.rms))


def layer_and_kind(key: str) -> Place:
    """Return the number of a key's layer, and what it is in it: `layers.3.mlp.up_proj.d` is (3, "mlp.up_proj").

    Further numbers, those of experts, are one kind: `*`.
    """
    path = key.rpartition(".")[0] or key
    found = _NUMBER.search(f"{path}.")
    if found is None:
        return None, path
    rest = f".{path[found.end() :]}." if found.end() <= len(path) else ""
    while (other := _NUMBER.sub(".*.", rest)) != rest:
        rest = other
    return int(found.group(1)), rest.strip(".") or path[: found.start()]


def heat_map(moves: Moves) -> Markup:
    """Return the figure: a row a layer, a column a kind, darker where training moved more."""
    title = f"Size of the delta by layer and kind ({moves.space} space)"
    place, size = max(moves.rms.items(), key=lambda item: item[1])
    told = (
        f"Root mean square of the delta: from {min(moves.rms.values()):.3g} to {size:.3g}, largest in {_named(place)}. "
        "Every direction moves all values alike, so an even map is what one run with one rate gives."
    )
    rows = [[_layer(layer), *(_number(moves, layer, kind) for kind in moves.kinds)] for layer in moves.layers]
    caption = tag("figcaption", f"{told} An empty frame: nothing moves there.")
    below = (caption, numbers(title, ["layer", *moves.kinds], rows))
    if len(moves.layers) * len(moves.kinds) > _CELLS:
        return figure(title, tag("p", f"More than {_CELLS} cells: see the numbers."), *below, wide=True)
    return figure(title, scrolling(title, _drawn(moves, title, told, size)), *below, wide=True)


def _drawn(moves: Moves, title: str, told: str, most: float) -> Markup:
    slanted = _LETTER * max(map(len, moves.kinds))
    top = 24 + 0.62 * slanted
    width = _LEFT + _CELL * len(moves.kinds) + 0.8 * slanted
    parts = [label("layer", _LEFT - 6, top - 8, "end")]
    for column, kind in enumerate(moves.kinds):
        x = _LEFT + _CELL * (column + 0.5)
        parts.append(
            tag("text", kind, x=f"{x:.1f}", y=f"{top - 8:.1f}", transform=f"rotate(-38 {x:.1f} {top - 8:.1f})")
        )
    for row, layer in enumerate(moves.layers):
        y = top + _ROW * row
        parts.append(label(_layer(layer), _LEFT - 6, y + _ROW - 3, "end"))
        for column, kind in enumerate(moves.kinds):
            parts.append(_cell(moves, (layer, kind), _LEFT + _CELL * column, y, most))
    bottom = top + _ROW * len(moves.layers) + 14
    return picture(title, told, *parts, *_legend(bottom, most), width=max(width, 320), height=bottom + 34, class_="map")


def _cell(moves: Moves, place: Place, x: float, y: float, most: float) -> Markup:
    box = {"x": f"{x + 0.5:.1f}", "y": f"{y + 0.5:.1f}", "width": _CELL - 1, "height": _ROW - 1}
    value = moves.rms.get(place)
    if value is None:
        return tag("rect", tag("title", f"{_named(place)}: nothing moves"), class_="absent", **box)
    shade = _shade(value / most if most else 0.0)
    return tag("rect", tag("title", f"{_named(place)}: {value:.4g}"), class_="heat", fill_opacity=shade, **box)


def _shade(share: float) -> str:
    return f"{0.05 + 0.95 * share:.3f}"


def _legend(y: float, most: float) -> list[Markup]:
    box = {"y": f"{y:.1f}", "width": 12, "height": 10, "class_": "heat"}
    shades = [tag("rect", x=_LEFT + 12 * each, fill_opacity=_shade(each / 11), **box) for each in range(12)]
    return [*shades, label("0", _LEFT, y + 25, "start"), label(f"{most:.3g}", _LEFT + 144, y + 25, "end")]


def _layer(layer: int | None) -> str:
    return "none" if layer is None else str(layer)


def _named(place: Place) -> str:
    layer, kind = place
    return kind if layer is None else f"layer {layer}, {kind}"


def _number(moves: Moves, layer: int | None, kind: str) -> str:
    value = moves.rms.get((layer, kind))
    return "–" if value is None else shown(value)
