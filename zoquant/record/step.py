"""One step of a run: its directions, how far it goes along each, and whether float32 holds it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zoquant.kernels.noise.definition import child_seed

MOST_AMOUNT, MOST_MOVE = 2.0**60, 2.0**40
"""Bounds on the weight of a direction, and on a rate and their product: the squares of the first, the sums of the
second over any run, and the products of rows and columns stay within float32, whose largest number is 2¹²⁸."""


@dataclass(frozen=True)
class Step:
    """One step: its directions, the derivative along each as it was applied, and the learning rates.

    All groups of a run move along the same directions, each by derivatives and at a rate of its own. A group whose
    derivatives are all 0 does not move, and no rule remembers the step: one that was undone is such a step.

    Attributes:
        seeds: the seed of each direction, or one that those of all directions are drawn from.
        derivatives: the derivative along each direction, as it was applied, group after group.
        rates: learning rate of each group.
    """

    seeds: tuple[int, ...]
    derivatives: tuple[float, ...]
    rates: tuple[float, ...]

    @property
    def probes(self) -> int:
        """The number of directions."""
        return len(self.derivatives) // len(self.rates)

    @property
    def directions(self) -> tuple[int, ...]:
        """The seed of each direction."""
        return directions_of(self.seeds, self.probes)

    @property
    def amounts(self) -> list[float]:
        """The weight of each direction in g, the mean over the probes, group after group."""
        return [derivative / self.probes for derivative in self.derivatives]

    @property
    def numbers(self) -> tuple[float, ...]:
        """All that is no seed: derivatives and rates."""
        return (*self.derivatives, *self.rates)

    def of(self, group: int) -> "Step":
        """Return the step of one group alone."""
        if group == 0 and len(self.rates) == 1:
            return self
        first = group * self.probes
        return Step(self.seeds, self.derivatives[first : first + self.probes], (self.rates[group],))

    def fault(self) -> str:
        """Say why this is no step of a run: a number is not finite, or larger than float32 allows; nothing if it is."""
        for group, rate in enumerate(self.rates):
            for amount in self.of(group).amounts or [0.0]:
                if not (math.isfinite(rate) and math.isfinite(amount)):
                    return f"moves by {rate:g} times {amount:g}, expected finite numbers"
                if not (abs(amount) <= MOST_AMOUNT and max(abs(rate), abs(rate * amount)) <= MOST_MOVE):
                    return (
                        f"moves by {rate:g} times {amount:g}, expected at most {MOST_MOVE:.0e} times "
                        f"{MOST_AMOUNT:.0e} and a product of {MOST_MOVE:.0e}, of which float32 holds all sums"
                    )
        return ""


def directions_of(seeds: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the seeds of `count` directions: these, or if it is one for several, those drawn from it."""
    if len(seeds) == count:
        return tuple(seeds)
    return tuple(child_seed(seeds[0], number) for number in range(count))
