"""What was aimed at, beside what was measured."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["at most", "at least"]


@dataclass(frozen=True)
class Target:
    """One figure.

    Attributes:
        name: what it is.
        side: whether it shall be at most or at least the bound.
        bound: the bound.
        value: what was measured; None where it was not.
        floor: what no code can pass, such as 1 for a step over its forwards; None where nobody knows it.
    """

    name: str
    side: Side
    bound: float
    value: float | None
    floor: float | None = None

    @property
    def wanted(self) -> str:
        """The side and the bound as people read them."""
        return f"{self.side} {self.bound:g}"

    @property
    def verdict(self) -> str:
        """Whether the target was met."""
        if self.value is None:
            return "not measured"
        met = self.value <= self.bound if self.side == "at most" else self.value >= self.bound
        return "met" if met else "missed"

    @property
    def left(self) -> str:
        """What lies between the figure and its floor, in percentage points; nothing where one of them is unknown."""
        if self.value is None or self.floor is None:
            return ""
        return f"{100 * abs(self.value - self.floor):.2f} %"

    def __str__(self) -> str:
        value = "" if self.value is None else f"{self.value:.3f}, "
        return f"{self.name}: {self.wanted}: {value}{self.verdict}"
