"""Probes of rows and columns: all of a step, or of a micro-batch, in one forward, and no value is written for any."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch

from zoquant.optim.closures import AnyClosure, loss_of, rows_of
from zoquant.optim.probes.probe import Probe
from zoquant.optim.probes.probed_layers import ProbedLayers
from zoquant.record.rows_and_columns import RowsAndColumnsMover


@dataclass(frozen=True)
class ForwardProbes:
    """Evaluates probes together, each on a block of rows of its own.

    Attributes:
        groups: what holds the rows and columns of each group.
        probes: directions a step.
        points: evaluations a step.
        split: whether the directions share the examples, or each sees all of them.
    """

    groups: Sequence[RowsAndColumnsMover]
    probes: int
    points: int
    split: bool

    together: ClassVar[bool] = True

    @property
    def repeat(self) -> int:
        return self.points // self.probes if self.split else self.points

    @property
    def forwards(self) -> int:
        return self.repeat

    def losses(
        self, plan: Sequence[Probe], closure: AnyClosure | Sequence[AnyClosure], weights: Sequence[float] | None,
        step: int,
    ) -> list[float]:  # fmt: skip
        closures = [closure] if callable(closure) else list(closure)
        orders = self._orders([self.probes] if weights is None else weights)
        if len(closures) != len(orders):
            raise ValueError(f"ZOSGD: {len(closures)} closures and {len(orders)} weights, expected as many of either.")
        losses: dict[int, float] = {}
        for part, order in zip(closures, orders, strict=True):
            means = self._means([plan[number] for number in order], part, self.repeat, step)
            losses.update(zip(order, means, strict=True))
        return [losses[number] for number in range(len(plan))]

    def loss(self, probe: Probe, closure: AnyClosure, step: int) -> float:
        return self._means([probe], closure, 1, step)[0]

    def share_moved(self, group: int, seed: int, eps: float) -> float:
        """Return 1: no probe is rounded to what stores the values."""
        return 1.0

    def _orders(self, weights: Sequence[float]) -> list[list[int]]:
        """Return which evaluations of the plan each micro-batch has, in the order of its rows."""
        shares = [int(weight) for weight in weights]
        fit = shares == list(weights) and sum(shares) == self.probes and min(shares, default=0) >= 1
        if not fit or not (self.split or len(shares) == 1):
            expected = f"directions that add up to {self.probes}" if self.split else "one, without split"
            raise ValueError(f"ZOSGD: weights is {list(weights)}, expected {expected}.")
        if not self.split:
            return [list(range(self.points))]
        ends = list(accumulate(shares))
        return [
            [direction * self.repeat + sign for sign in range(self.repeat) for direction in range(end - share, end)]
            for share, end in zip(shares, ends, strict=True)
        ]

    def _means(self, probes: Sequence[Probe], closure: AnyClosure, repeat: int, step: int) -> list[float]:
        """Return the mean loss of each block of rows, from one forward."""
        with ProbedLayers(self.groups, probes) as layers, torch.no_grad():
            losses = closure(repeat)
        count, share = len(probes), len(probes) // repeat
        expected = f", a multiple of {count}: {repeat} times the batch, {share} directions to share it"
        rows = rows_of(losses, count, step, expected)
        means = [loss_of(float(mean), step) for mean in rows.mean(1)]
        layers.check(rows.numel())
        return means
