"""How long the forwards of a step take."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Times the forwards inside a step."""

    def __init__(self) -> None:
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

    def step(self, seconds: float, forwards: int) -> tuple[float, float]:
        """Close a step of so many forwards of the batch.

        Returns:
            The mean time of a forward, and the time of the step ÷ that of its forwards; zeros for a rank without any.
        """
        inside, self._inside = sum(self._inside), []
        return (inside / forwards, seconds / inside) if inside else (0.0, 0.0)
