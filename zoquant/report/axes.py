"""Where numbers lie in a chart, and the round ones beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 78, 14, 10, 42
"""Room beside the lines, for the numbers and the names of the axes."""
_TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """The ranges of a chart."""

    x: Point
    y: Point

    @classmethod
    def over(cls, xs: Sequence[float], ys: Sequence[float]) -> "Axes":
        """Return axes with room for all of the numbers."""
        return cls(_room(min(xs), max(xs), 0), _room(min(ys), max(ys), 0.05))

    def place(self, x: float, y: float) -> Point:
        """Return where a point lies in the picture."""
        return (
            LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM),
        )


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
