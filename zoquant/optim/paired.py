"""Descent with both probes of a pair in one forward: packed words are read and unpacked once for the two of them."""

from typing import Any, ClassVar

import torch

from zoquant.native.twins import Twins
from zoquant.optim.closures import RowLosses, block_means
from zoquant.optim.optimizer import ZOSGD, Evaluation, StepResult
from zoquant.views.experts import refuse_gathered
from zoquant.views.model_views import Views


class PairedZO(ZOSGD):
    """`ZOSGD` whose probes are evaluated two at a time: the batch twice, one below the other, in one forward.

    The first half of the rows sees the values of one probe, the second half those of the other. Losses, trajectory and
    bytes are those of `ZOSGD` but for the order in which a device sums. The values, not the codes, are in memory twice.
    Where a GPU multiplies from packed words, it reads them once for both.

    Args:
        views: what `attach` returned, of native layers alone. What goes into a layer has the batch first, as its first
            dimension or flattened together with the positions.
        settings: as for `ZOSGD`.

    Raises:
        UnsupportedLayoutError: a view belongs to no native layer.
        ValueError: a number is out of its range, or the estimator evaluates an odd number of probes.
        BaseMismatchError: the views hold a delta already.
    """

    together: ClassVar[bool] = True

    def __init__(self, views: Views, **settings: Any) -> None:
        layers = list(dict.fromkeys(view.layer for view in views if view.layer is not None))
        for layer in layers:
            refuse_gathered(layer)
        self._twins = Twins({layer.path: layer.module for layer in layers})
        super().__init__(views, **settings)
        count = len(self.estimator.points(self.probes))
        if count % 2:
            raise ValueError(
                f"PairedZO: estimator {self.estimator.name!r} with probes={self.probes} evaluates {count} points, "
                "expected an even number: two share a forward. Change probes by one, or take ZOSGD."
            )

    def step(self, closure: RowLosses) -> StepResult:  # type: ignore[override]
        """Do one step, with a forward for each two evaluations.

        Args:
            closure: is called with 2. It puts the batch twice, one below the other, runs the model once, and returns
                the loss of each example, float `[2 * examples]`. It runs without gradients.

        Raises:
            ValueError: a scheduler set a rate out of its range.
            LossError: the losses are not one for each example, or one is NaN or infinite. The step is undone and counts
                as a step of length 0.
            ShapeError: a layer saw an odd number of rows; the step is undone and does not count.
            Exception: whatever the closure raises; the step is undone and does not count.
        """
        plan = self.plan()
        pairs = zip(plan[::2], plan[1::2], strict=True)
        return self._step(lambda: [loss for pair in pairs for loss in self._losses(closure, *pair)])

    def _losses(self, closure: RowLosses, first: Evaluation, second: Evaluation) -> list[float]:
        """Return the mean losses of two evaluations, from one forward."""
        self._probe(second)
        self._twins.take()
        self._probe(first)
        with self._twins, torch.no_grad():
            losses = closure(2)
        return block_means(losses, 2, self.steps, " of 2 times the batch")

    def _evaluate(self, closure: RowLosses, evaluation: Evaluation) -> float:  # type: ignore[override]
        self._probe(evaluation)
        with torch.no_grad():
            losses = closure(1)
        return block_means(losses, 1, self.steps, "")[0]

    def _probe(self, evaluation: Evaluation) -> None:
        self.views.write(seed=evaluation.seed, eps=evaluation.eps, noise=self.trajectory.noise)
