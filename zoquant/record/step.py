"""One step of a run: its directions, how far it goes along each, and whether float32 holds it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zoquant.kernels.noise.definition import child_seed

_FLOAT32_MAX = torch.finfo(torch.float32).max


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
        if len(self.rates) == 1:
            return self
        first = group * self.probes
        return Step(self.seeds, self.derivatives[first : first + self.probes], (self.rates[group],))

    def too_long(self) -> tuple[float, float] | None:
        """Return the first rate and weight that float32 does not hold, or whose product it does not."""
        for group, rate in enumerate(self.rates):
            for amount in self.of(group).amounts:
                if not max(abs(amount), abs(rate * amount)) <= _FLOAT32_MAX:
                    return rate, amount
        return None


def directions_of(seeds: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the seeds of `count` directions: these, or if it is one for several, those drawn from it."""
    if len(seeds) == count:
        return tuple(seeds)
    return tuple(child_seed(seeds[0], number) for number in range(count))
