"""A logistic regression whose weights are the deltas of a norm; rows that it has not seen choose its penalty."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoquant.views.gradients import Gradients

PENALTIES = (1e-1, 1e-2, 1e-3, 3e-4, 1e-4, 1e-5)
"""What a squared delta may cost."""
_FOLDS = 4
_ITERATIONS = 100


class Fit:
    """A logistic regression whose weights are the deltas of a norm.

    Attributes:
        all: all rows, bool `[rows]`.

    Args:
        scores: what the label words score after some hidden states, float32 `[rows, labels]`, by the deltas.
        states: what goes into the norm, `[rows, width]`.
        labels: int64 `[rows]`.
        deltas: of the norm.
    """

    def __init__(self, scores: Callable[[Tensor], Tensor], states: Tensor, labels: Tensor, deltas: Gradients) -> None:
        self._scores, self._states, self._labels = scores, states, labels
        self._deltas = list(deltas.parameters())
        self.all = torch.ones_like(labels, dtype=torch.bool)

    def start(self) -> tuple[float, float]:
        """Return the loss of all rows before anything has moved, and the norm of its gradient."""
        loss = self._losses(self.all).mean()
        gradients = torch.autograd.grad(loss, self._deltas)
        return float(loss.detach()), float(torch.cat([each.double().reshape(-1) for each in gradients]).norm())

    def best_penalty(self) -> float | None:
        """Return the penalty with the least loss on rows left out of the fit.

        None if that is not below the loss without any fit by its standard error: then nothing is to be gained.
        """
        folds = torch.arange(len(self._labels), device=self._labels.device) % _FOLDS
        without = self._held_out(None, folds)
        losses = {penalty: self._held_out(penalty, folds) for penalty in PENALTIES}
        best = min(PENALTIES, key=lambda penalty: float(losses[penalty].mean()))
        gain = without - losses[best]
        return best if float(gain.mean()) > float(gain.std()) / math.sqrt(len(gain)) else None

    def fit(self, penalty: float, rows: Tensor) -> None:
        """Minimize the mean loss of some rows plus penalty · |delta|²."""
        self._reset()
        optimizer = torch.optim.LBFGS(self._deltas, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self._losses(rows).mean() + penalty * sum(delta.square().sum() for delta in self._deltas)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]

    def _held_out(self, penalty: float | None, folds: Tensor) -> Tensor:
        """Return the loss of each row under a fit of the folds that it is not in, or under none."""
        losses = torch.zeros(len(folds), dtype=torch.float64, device=folds.device)
        for fold in range(_FOLDS):
            if penalty is not None:
                self.fit(penalty, folds != fold)
            with torch.no_grad():
                losses[folds == fold] = self._losses(folds == fold).double()
        self._reset()
        return losses

    @torch.no_grad()
    def _reset(self) -> None:
        for delta in self._deltas:
            delta.zero_()

    def _losses(self, rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self._scores(self._states[rows]), self._labels[rows], reduction="none")
