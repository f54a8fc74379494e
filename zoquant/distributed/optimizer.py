"""Steps of ranks that go together: each evaluates its cells, all get all losses, and all make the same update."""

import logging
import math
from collections.abc import Sequence
from functools import partial
from itertools import groupby

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from zoquant.distributed.agreement import Agreement
from zoquant.distributed.exchange import FINE, bits_of, gathered, losses_of, refuse_worse, state_of
from zoquant.distributed.joining import join
from zoquant.distributed.sharing import Cell, Sharing
from zoquant.errors import LossError
from zoquant.optim.closures import AnyClosure, loss_of, mean_loss
from zoquant.optim.measuring import StepResult
from zoquant.optim.optimizer import ZOSGD

_HEAD = 3  # numbers of a row before the losses: how this rank fared, and its two marks

log = logging.getLogger("zoquant")

Shares = Sequence[Sequence[Cell]]


class DistributedZO:
    """Shares out the steps of an optimizer among the ranks of the default process group.

    All ranks build the same optimizer and call `step` with the same closures; each calls those of its own cells alone.
    The result is, bit for bit, that of `ZOSGD.step` in one process. Ranks that are behind at first get the steps that
    they missed from the rank that is furthest.

    Args:
        optimizer: the optimizer of this rank.
        mesh: how the cells are shared out, see `zoquant.distributed.sharing`; None deals them out one by one.
        audit_every: steps after which all ranks evaluate one cell together and compare its loss, from the first step
            on; 0 never does. Ranks on different hardware may differ in the last bits.

    Raises:
        ValueError: the optimizer evaluates many losses in one forward, or the mesh is not one of all ranks.
        RankError: ranks have other settings, another base or other steps. On each of them nothing has changed.
    """

    def __init__(self, optimizer: ZOSGD, mesh: DeviceMesh | None = None, *, audit_every: int = 0) -> None:
        if optimizer.together:
            raise ValueError(
                "DistributedZO: optimizer moves rows and columns, whose losses come of one forward. Take a ZOSGD of "
                "values."
            )
        self.optimizer = optimizer
        self.rank = dist.get_rank()
        self._sharing = Sharing(dist.get_world_size(), mesh)
        self._agreement = Agreement(optimizer, self._sharing.parts)
        self._audit_every = audit_every
        self._steps_here = 0
        join(optimizer, self._agreement, self.rank)

    def step(self, closure: AnyClosure | Sequence[AnyClosure], weights: Sequence[float] | None = None) -> StepResult:
        """Do one step together with all ranks; closures and weights are those of `ZOSGD.step`.

        Raises:
            ValueError: a rate is out of its range, or the weights do not fit. Nothing has changed.
            LossError: a loss is NaN or infinite. The step is undone on all ranks and counts as a step of length 0.
            RankError: a rank failed, or differs from the others; it is named. The step is undone on all ranks.
            RankMemoryError: a rank ran out of memory, and no rank failed otherwise. The step is undone on all ranks and
                does not count: all may do it again with smaller micro-batches.
            Exception: whatever a closure of this rank raises; the step is undone on all ranks and does not count.
        """
        closures = [closure] if callable(closure) else list(closure)
        mean_loss(closure, weights)  # refuses weights that do not fit, before anything has changed
        shares = self._shares_now(len(closures))
        try:
            own = self._measure(closures, shares[self.rank])
        except BaseException as error:
            self.optimizer.restore()
            self._exchange([], shares, state_of(error))
            raise
        try:
            table = self._table(self._exchange(own, shares), shares)
        except BaseException:
            self.optimizer.restore()
            raise
        self._steps_here += 1
        rows = [[table[Cell(number, batch)] for batch in range(len(closures))] for number in range(self._evaluations)]
        return self.optimizer.apply([_mean(row, closure, weights) for row in rows])

    def check(self) -> None:
        """Make sure that all ranks hold the same bytes, as every step does with those before it. All ranks call it.

        Raises:
            RankError: one does not; it is named.
        """
        self._exchange([], [[]] * self._sharing.world)

    def bytes_a_step(self, micro_batches: int = 1) -> int:
        """Return how many bytes each rank sends a step without an audit: three numbers, and the losses of its cells."""
        return 8 * (_HEAD + max(map(len, self._shares(micro_batches))))

    def told(self, micro_batches: int = 1) -> str:
        """Return who shares the work of a step of so many micro-batches, and what travels, in words."""
        losses = self._evaluations * micro_batches
        return (
            f"{self._sharing.world} ranks share the {losses} losses of a step; each rank sends "
            f"{self.bytes_a_step(micro_batches)} bytes a step."
        )

    @property
    def _evaluations(self) -> int:
        return len(self.optimizer.estimator.points(self.optimizer.probes))

    def _shares(self, batches: int) -> list[list[Cell]]:
        """Return the cells of every rank."""
        points = self.optimizer.estimator.points(self.optimizer.probes)
        return [self._sharing.cells(rank, points, batches) for rank in range(self._sharing.world)]

    def _shares_now(self, batches: int) -> list[list[Cell]]:
        """Return the cells of every rank in this step: in an audit, the first one is everybody's."""
        shares = self._shares(batches)
        idle = [rank for rank, cells in enumerate(shares) if not cells]
        if idle and self._steps_here == 0 and self.rank == 0:
            log.warning(
                "a step has %d evaluations of %d micro-batches, so ranks %s have nothing to do: cut the batch into "
                "more micro-batches, or take more probes", self._evaluations, batches, idle,
            )  # fmt: skip
        if self._audit_every and self._steps_here % self._audit_every == 0:
            return [sorted({Cell(0, 0), *cells}) for cells in shares]
        return shares

    def _measure(self, closures: Sequence[AnyClosure], cells: Sequence[Cell]) -> list[int]:
        """Return the bits of the losses of some cells. The model is left at the last probe."""
        plan, found = self.optimizer.plan(), list[float]()

        def evaluate(batches: Sequence[Cell]) -> float:
            found.extend(self._number(closures[cell.batch]) for cell in batches)
            return 0.0

        for number, group in groupby(cells, key=lambda cell: cell.evaluation):
            self.optimizer.loss_at(plan[number], partial(evaluate, list(group)), restore=False)
        return bits_of(found)

    def _number(self, closure: AnyClosure) -> float:
        """Return a loss as a float, NaN where there is none: all ranks shall see it and undo the step."""
        try:
            return loss_of(closure(), self.optimizer.steps)
        except LossError as error:
            log.warning("rank %d: %s", self.rank, error)
            return math.nan

    def _exchange(self, own: Sequence[int], shares: Shares, state: int = FINE) -> list[list[int]]:
        """Send this rank's row; return the bits of the losses of all ranks, once it is known that the ranks agree."""
        blank = [0] * (max(map(len, shares)) - len(own))
        rows = gathered([state, *self._agreement.marks(), *own, *blank])
        refuse_worse([row[0] for row in rows], state, f"step {self.optimizer.steps}")
        if state == FINE:
            self._agreement.check([row[1:_HEAD] for row in rows])
        return [row[_HEAD:] for row in rows]

    def _table(self, rows: Sequence[Sequence[int]], shares: Shares) -> dict[Cell, float]:
        """Return the loss of each cell; ranks that evaluated the same one have to have found the same bits."""
        found: dict[Cell, dict[int, int]] = {}
        for rank, cells in enumerate(shares):
            for cell, bits in zip(cells, rows[rank], strict=False):  # a row may be filled up with zeros
                found.setdefault(cell, {})[rank] = bits
        for by_rank in found.values():
            losses = ", ".join(map(repr, losses_of([*by_rank.values()])))
            self._agreement.compare_some(by_rank, f"the loss of one probe and micro-batch ({losses})")
        return dict(zip(found, losses_of([next(iter(by_rank.values())) for by_rank in found.values()]), strict=True))


def _mean(
    losses: Sequence[float], closure: AnyClosure | Sequence[AnyClosure], weights: Sequence[float] | None
) -> float:
    """Return the mean over micro-batches, through the arithmetic of one process."""
    if callable(closure):
        return losses[0]
    return float(mean_loss([partial(float, loss) for loss in losses], weights)())
