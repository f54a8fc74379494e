"""ZOSGD for a training loop that evaluates first and calls `step()` without a closure later."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from zoquant.errors import LossError
from zoquant.optim.closures import Closure
from zoquant.optim.measuring import StepResult
from zoquant.optim.optimizer import ZOSGD
from zoquant.optim.probes.probe import Probe

_LOSSES_IN_A_ROW = 3


class DeferredStep(torch.optim.Optimizer):
    """What a training loop holds in place of the optimizer.

    `evaluate` stands where the loop calls backward, once for each micro-batch; `step` does the update. The parameter
    groups are those of the optimizer, so that a scheduler of either sets the rates of both.

    Attributes:
        zo: the optimizer.
        result: what its last step saw; None before the first.
    """

    def __init__(self, zo: ZOSGD) -> None:
        super().__init__(zo.param_groups, {})
        self.zo = zo
        self.result: StepResult | None = None
        self._losses: list[float] = []
        self._error: LossError | None = None
        self._failures = 0

    def evaluate(self, closure: Closure) -> float:
        """Evaluate a micro-batch wherever the next step wants to know the loss; losses of micro-batches add up.

        Args:
            closure: returns the loss of the micro-batch at the model's present values, as its share of the step's loss.

        Returns:
            The mean of its losses; NaN if one is not finite.
        """
        losses = [self._loss(probe, closure) for probe in self.zo.plan()]
        self._losses = [sum(pair) for pair in zip(self._losses or [0.0] * len(losses), losses, strict=True)]
        return sum(losses) / len(losses)

    def forget(self) -> None:
        """Drop what was evaluated since the last step."""
        self._losses, self._error = [], None

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Do the update that the evaluated losses ask for.

        A step whose loss is not finite is undone with a warning.

        Raises:
            LossError: three steps in a row were undone.
        """
        losses, error = self._losses, self._error
        self.forget()
        try:
            self.result = self.zo.apply(losses)
            self._failures = 0
        except LossError as undone:
            self._failures += 1
            if self._failures == _LOSSES_IN_A_ROW:
                raise LossError(
                    f"{error or undone} This happened {self._failures} times in a row. Begin again with half the lr, "
                    "or with clip set."
                ) from undone
            warnings.warn(str(error or undone), stacklevel=2)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: there are no gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer."""
        return self.zo.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state of the optimizer, replaying its trajectory."""
        self.zo.load_state_dict(state_dict)

    def _loss(self, probe: Probe, closure: Closure) -> float:
        try:
            return self.zo.loss_at(probe, closure)
        except LossError as error:
            self._error = error
            return math.nan
