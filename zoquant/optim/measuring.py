"""From the losses of a step to the step: derivatives of each group, clipped, and no longer than float32 holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zoquant.errors import LossError
from zoquant.optim.closures import loss_of
from zoquant.optim.estimators import Estimator, RobustClip, clipped
from zoquant.optim.parameter_groups import Rates
from zoquant.record.step import Step


@dataclass(frozen=True)
class StepResult:
    """What a step saw. Of several groups, derivative, share and rate are those of the first.

    Attributes:
        loss: mean of the losses of its evaluations.
        derivative: mean over its directions of the derivative, as measured, before clipping.
        clipped: whether a derivative was cut, of whatever group.
        moved: share of the stored values that the first probe of the run changed, after the cast to their dtype; 1
            where probes are not stored.
        lr: learning rate of this step.
        step: number of this step, from 0.
    """

    loss: float
    derivative: float
    clipped: bool
    moved: float
    lr: float
    step: int


def measured(
    losses: Sequence[float], estimator: Estimator, rates: Sequence[Rates], number: int
) -> list[tuple[float, ...]]:
    """Return the derivatives of each group.

    Args:
        losses: the loss of each evaluation.
        estimator: what is made of them.
        rates: of each group; its eps tells how long its part of the probes was.
        number: of the step, for messages.

    Raises:
        LossError: a loss or a derivative is not finite.
    """
    for loss in losses:
        loss_of(loss, number)
    return [_derivatives(losses, estimator, each.eps, number) for each in rates]


def made_step(
    found: Sequence[Sequence[float]], seeds: tuple[int, ...], rates: Sequence[Rates], before: Sequence[Step]
) -> Step:
    """Return the step that derivatives call for.

    Args:
        found: the derivatives of each group.
        seeds: of the step.
        rates: of each group.
        before: the steps so far.

    Raises:
        LossError: a group would move by more than float32 holds.
    """
    derivatives: list[float] = []
    for group, (each, rate) in enumerate(zip(found, rates, strict=True)):
        window = rate.clip.window if isinstance(rate.clip, RobustClip) else 0
        seen = [step.of(group).derivatives for step in before[-window:]] if window else []
        derivatives += clipped(each, rate.clip, seen)
    step = Step(seeds, tuple(derivatives), tuple(rate.lr for rate in rates))
    if fault := step.fault():
        raise LossError(f"step {len(before)}: {fault}. The step was undone; set clip, raise eps or lower lr.")
    return step


def _derivatives(losses: Sequence[float], estimator: Estimator, eps: float, number: int) -> tuple[float, ...]:
    try:
        found = estimator.derivatives(losses, eps)
    except (OverflowError, ZeroDivisionError):
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise LossError(
            f"step {number}: the losses {losses[0]:g} and {losses[1]:g} have no finite difference quotient at "
            f"eps={eps:g}. The step was undone; raise eps, or look at the batch."
        )
    return found
