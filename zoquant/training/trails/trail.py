"""What the loop of a run asks of what keeps its steps, so that the run can go on to the same bytes."""

from typing import Protocol

from zoquant.record.delta import Delta


class Trail(Protocol):
    """What the loop asks of it."""

    def begin(self) -> None:
        """Get ready for the first step of this life of the run."""

    def record(self) -> None:
        """Keep the steps so far, or part of them."""

    def evaluated(self, *, best: bool) -> None:
        """Keep where the run stands; `best` if it never stood better."""

    def best(self, step: int) -> Delta:
        """Return the delta of the step that did best."""

    def save(self) -> None:
        """Keep all there is, at the end of this life of the run."""

    def finish(self) -> None:
        """Leave out what only a run needs that is to go on."""
