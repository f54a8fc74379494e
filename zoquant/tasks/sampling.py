"""Which examples a batch has: in training a pure function of seed and step, in evaluation by length."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np


class Draws:
    """The examples of each training step, of which each is of a group: a number from 0, e.g. its label.

    Every group has its share of a batch; where it cannot be shared evenly, the groups with one more take turns. Each
    goes through its examples in an order drawn anew each epoch. A batch smaller than the number of groups is drawn from
    all examples alike.
    """

    def __init__(self, groups: Sequence[int]) -> None:
        self._all = [list(range(len(groups)))]
        self._groups: list[list[int]] = [[] for _ in range(max(groups) + 1)]
        for example, group in enumerate(groups):
            self._groups[group].append(example)
        self._groups = [members for members in self._groups if members]

    def of_step(self, seed: int, step: int, size: int) -> list[int]:
        """Return the numbers of the examples of a step."""
        chosen: list[int] = []
        groups = self._groups if size >= len(self._groups) else self._all
        kinds = len(groups)
        for group, members in enumerate(groups):
            for position in range(_drawn(size, kinds, group, step), _drawn(size, kinds, group, step + 1)):
                epoch, place = divmod(position, len(members))
                chosen.append(members[_order(seed, group, epoch, len(members))[place]])
        return chosen


def _drawn(size: int, kinds: int, group: int, steps: int) -> int:
    """Return how many examples of a group the first steps had: `size` in every `kinds` of them, one after the other."""
    return size * (group + steps) // kinds - size * group // kinds


@lru_cache(maxsize=64)
def _order(seed: int, group: int, epoch: int, count: int) -> list[int]:
    order: list[int] = np.random.Generator(np.random.PCG64([seed, group, epoch])).permutation(count).tolist()
    return order


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield the numbers of all examples, those of like length together, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]
