"""How long steps take, and the forwards inside them."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Times steps and the forwards inside them.

    Attributes:
        steps: seconds of each step.
        forwards: mean seconds of a forward of the batch, of each step that had one.
        ratios: time of each such step ÷ time of its forwards.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.forwards: list[float] = []
        self.ratios: list[float] = []
        self._inside: list[float] = []

    def forward(self, closure: Callable[[], T]) -> T:
        """Run the closure and note its time. It may be a part of a forward, or several at once."""
        start = time.perf_counter()
        loss = closure()
        self._inside.append(time.perf_counter() - start)
        return loss

    def discard(self) -> None:
        """Forget the forwards of a step that was undone."""
        self._inside = []

    def step(self, seconds: float, forwards: int) -> float:
        """Close a step of so many forwards of the batch; return their mean time, 0 for a rank that had none."""
        inside, self._inside = sum(self._inside), []
        self.steps.append(seconds)
        if not inside:
            return 0.0
        self.forwards.append(inside / forwards)
        self.ratios.append(seconds / inside)
        return self.forwards[-1]
