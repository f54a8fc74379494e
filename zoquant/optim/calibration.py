"""Measuring for self-tuning: what some dozen probes say of a loss.

Along one direction, the derivatives at two neighbouring eps differ by noise (rounding, or a closure that draws new
batches), whose variance is A/ε², and by curvature, whose bias is B·ε^p with p = 2 for two-point and 1 for one-sided:
E (d_i − d_j)² = A (1/ε_i² + 1/ε_j²) + B² (ε_i^p − ε_j^p)². Every pair of neighbours bounds A and B from above; the
smallest bounds are taken. The error of an eps is then √(A/ε² + B² ε^2p). What follows from it, `choosing` says.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from zoquant.errors import LossError
from zoquant.kernels.noise.definition import step_seed
from zoquant.optim.choosing import EpsFound, Given, Numbers, choose_clip, choose_eps, choose_lr, remarks
from zoquant.optim.closures import AnyClosure
from zoquant.optim.estimators import Estimator
from zoquant.optim.probes import Prober
from zoquant.optim.probes.probe import Probe

GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Lengths of probes that are tried, as shares of the values."""

_SCAN_DIRECTIONS = 4
_DIRECTIONS = 8

Loss = Callable[[int | None, float, int], float]
"""Loss at theta + eps · z(direction): called with direction (None: theta itself), eps and number of the batch."""


@dataclass(frozen=True)
class Calibration(Numbers):
    """What `ZOSGD.calibrate` measured, chose, and why.

    Attributes:
        loss: mean loss at theta.
        repeat: difference of two evaluations at theta: 0 unless the closure draws batches or the forward is random.
        derivatives: the derivatives at eps, as the rule will get them.
        derivative_rms, derivative_median: their rms, and the median of their absolute values.
        signal: share of their variance that two batches have in common; None with one batch.
        curvature: mean second derivative of the loss along a direction.
        scan: what was measured at each eps.
    """

    loss: float
    repeat: float
    derivatives: tuple[float, ...]
    derivative_rms: float
    derivative_median: float
    signal: float | None
    curvature: float
    scan: tuple[EpsFound, ...]


@dataclass(frozen=True, kw_only=True)
class Plan(Given):
    """What the calibration works with.

    Attributes:
        loss: evaluates the loss.
        batches: number of batches that `loss` knows.
        moved: share of the stored values that a probe of some eps changes.
        estimator: of the run.
    """

    loss: Loss
    batches: int
    moved: Callable[[float], float]
    estimator: Estimator


def loss_along(
    prober: Prober, closures: Sequence[AnyClosure], seed: int, step: int, group: int, groups: int
) -> Loss:  # fmt: skip
    """Return the loss of closures, one a batch, along directions of one of so many groups; the others stay at theta."""

    def loss(direction: int | None, length: float, batch: int) -> float:
        found = None if direction is None else step_seed(seed, -1, direction)
        probe = Probe(found, tuple(length if each == group else 0.0 for each in range(groups)))
        return prober.loss(probe, closures[batch], step)

    return loss


def calibrate(plan: Plan) -> Calibration:
    """Measure and choose.

    Raises:
        LossError: the loss at theta is no finite number, or no direction changes it.
    """
    count = 0

    def loss(direction: int | None, eps: float, batch: int) -> float:
        nonlocal count
        count += 1
        return plan.loss(direction, eps, batch)

    centers = [loss(None, 0.0, batch) for batch in range(min(plan.batches, 2))]
    repeat = abs(loss(None, 0.0, 0) - centers[0])
    grid = [share * plan.unit for share in GRID] if "eps" in plan.choose else [plan.eps]
    scan = _scan(plan, loss, grid, centers[0])
    eps, why_eps = choose_eps(plan, scan)
    losses = [_both_sides(loss, eps, batch) for batch in range(len(centers))]
    applied = [_applied(plan.estimator, center, pairs, eps) for center, pairs in zip(centers, losses, strict=True)]
    derivatives = tuple(d for batch in applied for d in batch)
    rms, median = _rms(derivatives), statistics.median(map(abs, derivatives))
    if not math.isfinite(rms):
        raise LossError(f"calibration: derivatives of {median:g} have no finite mean square. Scale the loss down.")
    if not rms:
        raise LossError(
            f"calibration: no probe of eps={eps:g} changes the loss of {centers[0]:g}. Is it computed from the model?"
        )
    curvature = statistics.fmean(
        (plus + minus - 2 * center) / eps**2
        for center, pairs in zip(centers, losses, strict=True)
        for plus, minus in pairs
    )
    raw = _rms([(plus - minus) / (2 * eps) for pairs in losses for plus, minus in pairs])
    lr, why_lr = choose_lr(plan, rms, raw, curvature)
    clip, why_clip = choose_clip(plan, median)
    signal = _signal(applied)
    return Calibration(
        eps, lr, clip, (why_eps, why_lr, why_clip, *remarks(signal, repeat, rms, eps)), count,
        statistics.fmean(centers), repeat, derivatives, rms, median, signal, curvature, tuple(scan),
    )  # fmt: skip


def _scan(plan: Plan, loss: Loss, grid: Sequence[float], center: float) -> list[EpsFound]:
    """Measure the same few directions at every eps."""
    order = plan.estimator.bias_order
    columns = [
        [_quotient(loss, direction, eps, order, center) for direction in range(_SCAN_DIRECTIONS)] for eps in grid
    ]
    good = [n for n, column in enumerate(columns) if all(map(math.isfinite, column))]
    pairs = [
        (grid[i], grid[j], statistics.fmean((a - b) * (a - b) for a, b in zip(columns[i], columns[j], strict=True)))
        for i, j in pairwise(good)
    ]
    noise = math.sqrt(min((r / (1 / e**2 + 1 / f**2) for e, f, r in pairs), default=0.0))
    bias = math.sqrt(min((r / (f**order - e**order) ** 2 for e, f, r in pairs), default=0.0))
    return [
        EpsFound(eps, plan.moved(eps), _rms(column), noise / eps, bias * eps**order)
        for eps, column in zip(grid, columns, strict=True)
    ]


def _quotient(loss: Loss, direction: int, eps: float, order: int, center: float) -> float:
    """Return the difference quotient whose bias is of this order, NaN where a loss is not finite."""
    try:
        plus = loss(direction, eps, 0)
        return (plus - center) / eps if order == 1 else (plus - loss(direction, -eps, 0)) / (2 * eps)
    except LossError:
        return math.nan


def _both_sides(loss: Loss, eps: float, batch: int) -> list[tuple[float, float]]:
    """Return the losses on both sides of some directions, the same ones for every batch."""
    return [(loss(direction, eps, batch), loss(direction, -eps, batch)) for direction in range(_DIRECTIONS)]


def _applied(
    estimator: Estimator, center: float, pairs: Sequence[tuple[float, float]], eps: float
) -> tuple[float, ...]:
    """Return the derivatives of the directions as the estimator has them."""
    losses = [
        center if point.probe is None else pairs[point.probe][0 if point.sign > 0 else 1]
        for point in estimator.points(len(pairs))
    ]
    return estimator.derivatives(losses, eps)


def _signal(applied: Sequence[Sequence[float]]) -> float | None:
    """Return the share of the variance that the same directions have in common on two batches."""
    if len(applied) < 2:
        return None
    common = statistics.fmean(a * b for a, b in zip(*applied, strict=True))
    total = statistics.fmean(d * d for batch in applied for d in batch)
    return min(1.0, max(0.0, common / total))


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(value * value for value in values))
