"""Descent along rows and columns: all probes of a step in one forward, and no value written for any of them."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar, cast

import torch

from zoquant.errors import LossError
from zoquant.kernels.noise.definition import Kind, Noise, step_seed
from zoquant.optim.calibration import Calibration
from zoquant.optim.closures import RowLosses, block_means
from zoquant.optim.estimators import Clip, Estimator, TwoPoint
from zoquant.optim.optimizer import ZOSGD, Evaluation, StepResult
from zoquant.optim.probing import Probing
from zoquant.record.rows_and_columns import FactorMover, Subspace
from zoquant.record.rules import Rule
from zoquant.views.model_views import Views


class BatchedZO(ZOSGD):
    """`ZOSGD` on rows and columns: theta = base · (1 + u_row) · (1 + v_column), with all probes in one forward.

    A direction has a number for each row and each column of a layer's grid of values. It is probed by scaling what goes
    into the layer and what comes out, so every block of rows of a batch may have a direction of its own.

    With `split`, n directions share the examples of a batch: each has 1/n of them, and as many directions as examples
    give each example its own. L_k is the mean loss of the examples of direction k, and

        d_k = (L_k(theta + ε z_k) − L_k(theta − ε z_k)) / 2ε,    g = 1/n · Σ d_k · z_k

    at the cost of two forwards of the batch. Without it every direction sees the whole batch, at the cost of 2n
    forwards of it, and any estimator will do.

    Source: MeZO (arXiv 2305.17333, algorithm 1); GRZO (arXiv 2606.02857) for a direction to each example.

    Args:
        views: what `attach` returned.
        directions: directions a step, n.
        split: whether the directions share the examples, or each sees all of them.
        lr: learning rate; `torch.optim.lr_scheduler` may change it from step to step.
        eps: length ε of a probe, relative to 1 + u and 1 + v at the base.
        clip: bound on the derivative, as in `ZOSGD`.
        seed: seed of the run: with the same data it gives the same bytes, on the same machine.
        noise: distribution of z.
        estimator: what is made of the losses; with `split` one of two sides: `TwoPoint()`, `GroupRelative()`.
        rule: how g moves u and v.
        decay: pull of u and v back to 0, per unit of lr.

    Raises:
        UnsupportedLayoutError: a layer has no rows and columns; the message says what to leave out.
        ValueError: a number is out of its range, or the estimator needs a point that the directions do not share.
        BaseMismatchError: the views hold a delta already.
    """

    subspace: ClassVar[Subspace] = "rows-columns"
    together: ClassVar[bool] = True

    def __init__(
        self,
        views: Views,
        *,
        directions: int,
        split: bool = True,
        lr: float = 4e-3,
        eps: float = 3e-2,
        clip: Clip = None,
        seed: int = 0,
        noise: Kind | Noise = "rademacher",
        estimator: Estimator | None = None,
        rule: Rule | None = None,
        decay: float = 0.0,
    ) -> None:
        estimator = TwoPoint() if estimator is None else estimator
        if split and any(point.probe is None for point in estimator.points(max(directions, 2))):
            raise ValueError(
                f"BatchedZO: estimator is {estimator.name!r}, which compares all directions with one loss at theta, "
                "but with split=True each has other examples. Take TwoPoint() or GroupRelative(), or split=False."
            )
        self.split = split
        super().__init__(
            views, lr=lr, eps=eps, clip=clip, seed=seed, probes=directions, noise=noise, estimator=estimator,
            rule=rule, decay=decay,
        )  # fmt: skip

    @property
    def repeat(self) -> int:
        """How often the closure of `step` is told to repeat its batch."""
        points = len(self.estimator.points(self.probes))
        return points // self.probes if self.split else points

    def step(  # type: ignore[override]
        self, closure: RowLosses | Sequence[RowLosses], shares: Sequence[int] | None = None
    ) -> StepResult:
        """Do one step, with one forward.

        Args:
            closure: is called once, with `repeat`. It puts the batch so many times one below the other, runs the model
                once, and returns the loss of each example, float `[repeat * examples]`. An example may be several
                neighbouring rows of the model's input. It runs without gradients. With `split`, several closures are
                the micro-batches of one step, each with a forward of its own.
            shares: of several closures, how many of the directions each has, in order.

        Raises:
            ValueError: a scheduler set a rate out of its range, or the shares do not fit. Nothing has changed.
            LossError: the losses are not one for each example, or one is NaN or infinite. The step is undone and counts
                as a step of length 0.
            ShapeError, UnsupportedLayoutError: a layer did not see the rows of the batch. Nothing has changed.
            Exception: whatever the closure raises. Nothing has changed.
        """
        plan = self.plan()
        closures = [closure] if callable(closure) else list(closure)
        orders = self._orders([self.probes] if shares is None else shares)
        if len(closures) != len(orders):
            raise ValueError(
                f"BatchedZO: {len(closures)} closures and {len(orders)} shares, expected as many of either."
            )
        losses: dict[int, float] = {}
        try:
            for part, order in zip(closures, orders, strict=True):
                means = self._losses(part, [plan[number] for number in order], self.repeat)
                losses.update(zip(order, means, strict=True))
        except LossError:
            self._undo()
            raise
        return self.apply([losses[number] for number in range(len(plan))])

    def _orders(self, shares: Sequence[int]) -> list[list[int]]:
        """Return which evaluations of the plan each micro-batch has, in the order of its rows."""
        if sum(shares) != self.probes or min(shares, default=0) < 1 or not (self.split or len(shares) == 1):
            expected = f"directions that add up to {self.probes}" if self.split else "one, without split"
            raise ValueError(f"BatchedZO: shares is {list(shares)}, expected {expected}.")
        if not self.split:
            return [list(range(len(self.estimator.points(self.probes))))]
        ends = list(accumulate(shares))
        return [
            [direction * self.repeat + sign for sign in range(self.repeat) for direction in range(end - share, end)]
            for share, end in zip(shares, ends, strict=True)
        ]

    def calibrate(
        self,
        closure: RowLosses | Sequence[RowLosses],  # type: ignore[override]
        *,
        choose: Sequence[str] = ("lr", "eps", "clip"),
        schedule: Sequence[float] | None = None,
    ) -> Calibration:
        """Measure the loss around theta and set eps, lr and clip, as `ZOSGD.calibrate` does.

        Args:
            closure: as for `step`, or one for each of several batches; it is told to repeat nothing.
            choose: which of `"lr"`, `"eps"` and `"clip"` to set.
            schedule: the learning rate of each step to come, relative to the first.

        Raises:
            ValueError: lr or clip is to be chosen, but the directions share the examples: whole batches do not tell how
                much the derivatives of single examples differ.
        """
        if self.split and set(choose) - {"eps"}:
            raise ValueError(
                f"BatchedZO: choose is {tuple(choose)!r}, expected ('eps',): with split=True a direction sees few "
                "examples, and calibration measures whole batches. Set lr and clip by hand, or take split=False."
            )
        return super().calibrate(closure, choose=choose, schedule=schedule)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Return settings, seed and trajectory, as `ZOSGD.state_dict` does."""
        return {**super().state_dict(), "split": self.split}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, replaying its trajectory.

        Raises:
            BaseMismatchError: the state belongs to another base. Nothing has changed.
            CheckpointError: the state is damaged. Nothing has changed.
            ValueError: the state is that of another kind of optimizer. Nothing has changed.
        """
        super().load_state_dict(state_dict)
        self.split = state_dict["split"]

    def _seeds(self) -> tuple[int, ...]:
        return (step_seed(self.seed, self.steps),)

    def _evaluate(self, closure: RowLosses, evaluation: Evaluation) -> float:  # type: ignore[override]
        return self._losses(closure, [evaluation], 1)[0]

    def _losses(self, closure: RowLosses, blocks: Sequence[Evaluation], repeat: int) -> list[float]:
        """Return the mean loss of each block of rows, from one forward."""
        factors = cast(FactorMover, self._mover).factors
        with Probing(factors, self.trajectory.noise, blocks) as probing, torch.no_grad():
            losses = closure(repeat)
        count, share = len(blocks), len(blocks) // repeat
        expected = f", a multiple of {count}: {repeat} times the batch, {share} directions to share it"
        means = block_means(losses, count, self.steps, expected)
        probing.check(len(losses))
        return means

    def _share_moved(self, seed: int, eps: float) -> float:
        """Return 1: no probe is rounded to what stores the values."""
        return 1.0
