"""From the losses of a step to the step: derivatives of each group, clipped, and no longer than float32 holds."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from zoquant.errors import LossError
from zoquant.optim.closures import loss_of
from zoquant.optim.estimators import Estimator, RobustClip, clipped
from zoquant.optim.parameter_groups import Rates
from zoquant.optim.probes import Prober
from zoquant.record.step import Step

_FLAT = 8
"""So many steps in a row whose derivatives are exactly 0 are no chance any more."""
_MOVED_WARNING = 0.5


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
    """Return the derivatives of each group from the loss of each evaluation of step `number`.

    Raises:
        LossError: a loss or a derivative is not finite.
    """
    for loss in losses:
        loss_of(loss, number)
    return [_derivatives(losses, estimator, each.eps, number) for each in rates]


def made_step(
    found: Sequence[Sequence[float]], seeds: tuple[int, ...], rates: Sequence[Rates], before: Sequence[Step]
) -> Step:
    """Return the step that the derivatives of each group call for, after the steps before.

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


def share_moved(prober: Prober, rates: Sequence[Rates], seed: int) -> list[float]:
    """Return the share of each group's stored values that a probe changes; warn where it is small."""
    found = [prober.share_moved(group, seed, each.eps) for group, each in enumerate(rates)]
    for moved, each in zip(found, rates, strict=True):
        if moved < _MOVED_WARNING:
            warnings.warn(
                f"a probe of eps={each.eps:g} changes only {moved:.1%} of the values once they are stored; the rest is "
                "lost to rounding. Raise eps.",
                stacklevel=3,
            )
    return found


def warn_of_flat(steps: Sequence[Step]) -> None:
    """Say it, once a run of them, if the derivatives of the last steps are all exactly 0."""
    moved = [any(step.derivatives) for step in steps[-_FLAT - 1 :]]
    if len(moved) >= _FLAT and not any(moved[-_FLAT:]) and moved[:-_FLAT] != [False]:
        warnings.warn(
            f"the derivatives of {_FLAT} steps in a row are exactly 0: no probe changed the loss, so nothing moves. "
            "Does the closure run the model that was attached, and does its loss depend on those layers? A layer that "
            "keeps a copy of its values needs refresh() of its backend.",
            stacklevel=3,
        )


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
