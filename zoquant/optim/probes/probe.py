"""A probe: one loss that a step asks for."""

from typing import NamedTuple


class Probe(NamedTuple):
    """One loss: at theta + eps · z(seed), at theta itself where seed is None.

    Attributes:
        seed: seed of the direction, which all groups share.
        eps: signed length in each group.
    """

    seed: int | None
    eps: tuple[float, ...]

    def of(self, group: int) -> tuple[int | None, float]:
        """Return seed and length in one group; a group that stays at theta has no seed."""
        return (self.seed if self.eps[group] else None), self.eps[group]
