"""A learning rate that nobody gave is halved where the loss of the examples rises above that of the start."""

import math

_FEWEST, _WINDOWS = 8, 20
_ERRORS = 3.0
"""Standard errors by which a loss has to be larger: losses of batches differ by chance."""


class Rising:
    """Watches the losses of a run's steps, window by window, and says how far to lower the learning rate.

    The rate is halved after each window whose mean loss is above that of the first by three standard errors of the
    difference, unless it is below that of the window before: then it falls already. All follows from the losses alone.

    Attributes:
        factor: what the learning rate is to be multiplied by.

    Args:
        steps: of the run; a window is a twentieth of them, and at least eight.
    """

    def __init__(self, steps: int) -> None:
        self.factor = 1.0
        self._size = max(_FEWEST, math.ceil(steps / _WINDOWS))
        self._window: list[float] = []
        self._first: tuple[float, float] | None = None
        self._last = math.inf

    def see(self, loss: float) -> str | None:
        """Take in the loss of a step; return what to say if the rate is halved now."""
        self._window.append(loss)
        if len(self._window) < self._size:
            return None
        mean = math.fsum(loss / self._size for loss in self._window)
        error = math.dist(self._window, [mean] * self._size) / math.sqrt(self._size * (self._size - 1))
        falls, self._last, self._window = mean < self._last, mean, []
        if self._first is None:
            self._first = mean, error
            return None
        first, error_then = self._first
        if falls or not mean - first > _ERRORS * math.hypot(error, error_then):
            return None
        self.factor /= 2
        return (
            f"the loss of the examples has risen from {first:.3g} to {mean:.3g}: the learning rate is halved, to "
            f"{self.factor:g} of what it would be"
        )
