"""A probe, and what every way to evaluate the losses of probes has."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from zoquant.optim.closures import AnyClosure


class Probe(NamedTuple):
    """One loss that a step asks for: at theta + eps · z(seed), at theta itself where seed is None.

    Attributes:
        seed: seed of the direction, which all groups share.
        eps: signed length in each group.
    """

    seed: int | None
    eps: tuple[float, ...]

    def of(self, group: int) -> tuple[int | None, float]:
        """Return seed and length in one group; a group that stays at theta has no seed."""
        return (self.seed if self.eps[group] else None), self.eps[group]


class Prober(Protocol):
    """How the losses of probes are evaluated."""

    @property
    def together(self) -> bool:
        """Whether probes share a forward, so that a closure is told how often to repeat its batch."""

    @property
    def repeat(self) -> int:
        """How often a step has the batch repeated in a forward."""

    @property
    def forwards(self) -> int:
        """How many forwards of the batch a step costs; one of a repeated batch counts as so many."""

    def losses(
        self, plan: Sequence[Probe], closure: AnyClosure | Sequence[AnyClosure], weights: Sequence[float] | None,
        step: int,
    ) -> list[float]:  # fmt: skip
        """Return the loss of each probe of a step, in order. The model may be left at a probe.

        Args:
            plan: the probes.
            closure: the batch, or its micro-batches.
            weights: of several micro-batches.
            step: number of the step, for messages.

        Raises:
            ValueError: the weights do not fit. Nothing has changed.
            LossError: a loss is no number, NaN or infinite.
        """

    def loss(self, probe: Probe, closure: AnyClosure, step: int) -> float:
        """Return the loss of one probe. The model may be left at it.

        Raises:
            LossError: the loss is no number, NaN or infinite.
        """

    def share_moved(self, group: int, seed: int, eps: float) -> float:
        """Return the share of a group's stored values that a probe changes."""
