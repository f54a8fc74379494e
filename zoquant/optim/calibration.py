"""Self-tuning: what some dozen probes say of a loss, and the eps, lr and clip that follow from it.

Eps. Along one direction, the derivatives at two neighbouring eps differ by noise (rounding, or a closure that draws new
batches), whose variance is A/ε², and by curvature, whose bias is B·ε^p with p = 2 for two-point and 1 for one-sided:
E (d_i − d_j)² = A (1/ε_i² + 1/ε_j²) + B² (ε_i^p − ε_j^p)². Every pair of neighbours bounds A and B from above; the
smallest bounds are taken. The error of an eps is then √(A/ε² + B² ε^2p).

Lr. With rms derivative d and n probes, a step moves an element by lr · gain(d/√n). Over a run these moves add up like a
random walk to lr · gain · √Σ s_t², with s_t the schedule relative to its first rate. The lr makes this `WALK`, as a
share of the values. It is kept below the best single step for the measured curvature, lr = n / h with
h = mean of (L₊ + L₋ − 2 L₀) / ε².

Clip. `CLIP` times the median of |d|: about four standard deviations of a normal distribution.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from zoquant.errors import LossError
from zoquant.optim.estimators import Clip, Estimator
from zoquant.record.rules import Rule

GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Lengths of probes that are tried, as shares of the values."""
PREFERRED = 3e-2
"""Of several eps that are equally good the one nearest to this share is taken."""
WALK = 0.15
"""How far a run may go, as a share of the values: what tuning by hand came to on the models that were tried."""
CLIP = 6.0
"""Multiple of the median |d|."""

_SCAN_DIRECTIONS = 4
_DIRECTIONS = 8
_EQUAL = 1.5
_GOOD_ENOUGH = 0.1
_STEPS = 1000

Loss = Callable[[int | None, float, int], float]
"""Loss at theta + eps · z(direction): called with direction (None: theta itself), eps and number of the batch."""


@dataclass(frozen=True)
class EpsFound:
    """What was measured at one eps.

    Attributes:
        eps: length of the probes, in units of the space.
        moved: share of the stored values that a probe changes.
        derivative: rms of the derivative; NaN where a loss was not finite.
        noise: estimated standard deviation of a derivative from rounding, √A / ε.
        bias: estimated error from curvature, B · ε^p.
    """

    eps: float
    moved: float
    derivative: float
    noise: float
    bias: float

    @property
    def error(self) -> float:
        """Noise and bias together, as rms."""
        return math.hypot(self.noise, self.bias)


@dataclass(frozen=True)
class Numbers:
    """The numbers of a run, and why.

    Attributes:
        eps, lr, clip: the numbers, chosen or kept.
        reasons: a sentence on each, and on what else should be known.
        forwards: evaluations that all this took.
    """

    eps: float
    lr: float
    clip: Clip
    reasons: tuple[str, ...]
    forwards: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold; a number that is not finite becomes None."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain


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


@dataclass(frozen=True)
class Plan:
    """What the calibration works with.

    Attributes:
        loss: evaluates the loss.
        batches: number of batches that `loss` knows.
        moved: share of the stored values that a probe of some eps changes.
        unit: what an eps of 1 would be in relative space: 1 there, the median absolute value in absolute space.
        estimator, rule, probes: of the run.
        eps, lr, clip: the present numbers.
        choose: which of them to choose.
        schedule: learning rates of the run to come, relative to the first; None is not known.
    """

    loss: Loss
    batches: int
    moved: Callable[[float], float]
    unit: float
    estimator: Estimator
    rule: Rule
    probes: int
    eps: float
    lr: float
    clip: Clip
    choose: Sequence[str]
    schedule: Sequence[float] | None


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
    eps, why_eps = _choose_eps(plan, scan)
    losses = [_both_sides(loss, eps, batch) for batch in range(len(centers))]
    applied = [_applied(plan.estimator, center, pairs, eps) for center, pairs in zip(centers, losses, strict=True)]
    derivatives = tuple(d for batch in applied for d in batch)
    rms, median = _rms(derivatives), statistics.median(map(abs, derivatives))
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
    lr, why_lr = _choose_lr(plan, rms, raw, curvature)
    clip, why_clip = _choose_clip(plan, median)
    signal = _signal(applied)
    return Calibration(
        eps, lr, clip, (why_eps, why_lr, why_clip, *_remarks(signal, repeat, rms, eps)), count,
        statistics.fmean(centers), repeat, derivatives, rms, median, signal, curvature, tuple(scan),
    )  # fmt: skip


def by_rule(
    rule: Rule,
    directions: int,
    schedule: Sequence[float],
    *,
    eps: float | None = None,
    lr: float | None = None,
    clip: Clip = None,
) -> Numbers:
    """Choose without a forward: group-relative derivatives are of size 1, whatever the loss.

    The mean of n of them has the rms 1/√n, so the lr that makes a run walk `WALK` of a value is known beforehand.

    Args:
        rule: update rule.
        directions: directions a step, n.
        schedule: learning rates of the run, relative to the first.
        eps: length of a probe, None for `PREFERRED`.
        lr: learning rate, None for that of the walk.
        clip: bound on the derivative.
    """
    step = 1 / math.sqrt(directions)
    walk = WALK / (rule.gain(step) * _length(schedule))
    why_eps = f"eps {eps:.3g} was given." if eps is not None else (
        f"eps {PREFERRED:.3g}: a derivative relative to those of the other examples does not depend on its size."
    )  # fmt: skip
    why_lr = f"lr {lr:.3g} was given." if lr is not None else (
        f"lr {walk:.3g}: the mean of {directions} such derivatives is of size {step:.2g}, and {len(schedule)} steps of "
        f"{walk * rule.gain(step):.2g} of a value add up to a walk of {WALK:.2g} of it."
    )  # fmt: skip
    why_clip = "clip: none, since the derivatives of a step share their scale." if clip is None else "clip was given."
    return Numbers(PREFERRED if eps is None else eps, walk if lr is None else lr, clip, (why_eps, why_lr, why_clip), 0)


def _length(schedule: Sequence[float]) -> float:
    """Return how far a random walk goes whose steps are the rates of a schedule."""
    return math.sqrt(sum(rate**2 for rate in schedule))


def _scan(plan: Plan, loss: Loss, grid: Sequence[float], center: float) -> list[EpsFound]:
    """Measure the same few directions at every eps."""
    order = plan.estimator.bias_order
    columns = [
        [_quotient(loss, direction, eps, order, center) for direction in range(_SCAN_DIRECTIONS)] for eps in grid
    ]
    good = [n for n, column in enumerate(columns) if all(map(math.isfinite, column))]
    pairs = [
        (grid[i], grid[j], statistics.fmean((a - b) ** 2 for a, b in zip(columns[i], columns[j], strict=True)))
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


def _choose_eps(plan: Plan, scan: Sequence[EpsFound]) -> tuple[float, str]:
    if "eps" not in plan.choose:
        return plan.eps, f"eps {plan.eps:.3g} was given; a probe moves {scan[0].moved:.0%} of the stored values."
    finite = [row for row in scan if math.isfinite(row.derivative)]
    if not finite:
        raise LossError("calibration: no probe has a finite loss, at any eps. Look at the batch.")
    most = max(row.moved for row in finite)
    moving = [row for row in finite if row.moved >= 0.9 * most]
    least = min(moving, key=lambda row: row.error)
    allowed = max(_EQUAL * least.error, _GOOD_ENOUGH * least.derivative)
    best = [row for row in moving if row.error <= allowed]
    taken = min(best, key=lambda row: abs(math.log(row.eps / (PREFERRED * plan.unit))))
    return taken.eps, (
        f"eps {taken.eps:.3g}: rounding adds {taken.noise:.2g} and curvature {taken.bias:.2g} to a derivative of "
        f"{taken.derivative:.3g}; {len(best)} of {len(scan)} eps are as good, and this one is nearest to "
        f"{PREFERRED * plan.unit:.3g}; a probe moves {taken.moved:.0%} of the stored values."
    )


def _choose_lr(plan: Plan, rms: float, raw: float, curvature: float) -> tuple[float, str]:
    if "lr" not in plan.choose:
        return plan.lr, f"lr {plan.lr:.3g} was given."
    schedule = [1.0] * _STEPS if plan.schedule is None else plan.schedule
    gain = plan.rule.gain(rms / math.sqrt(plan.probes))
    walk = WALK * plan.unit / (gain * _length(schedule))
    steps = f"{len(schedule)} steps" if plan.schedule is not None else f"{_STEPS} steps, since the number is not known"
    text = f"{steps} of {walk * gain / plan.unit:.2g} of a value add up to a walk of {WALK:.2g} of it"
    limit = raw * math.sqrt(plan.probes) / (curvature * gain) if curvature > 0 else math.inf
    if limit < walk:
        return (
            limit,
            f"lr {limit:.3g}: the best single step for a curvature of {curvature:.3g}; {text}, which is longer.",
        )
    return walk, f"lr {walk:.3g}: at a derivative of {rms:.3g}, {text}."


def _choose_clip(plan: Plan, median: float) -> tuple[Clip, str]:
    if "clip" not in plan.choose:
        return plan.clip, "clip was given." if plan.clip is not None else "clip: none, as given."
    if not median:
        return None, "clip: none, since most derivatives are 0."
    return (
        CLIP * median,
        f"clip {CLIP * median:.3g}: {CLIP:g} times the median of |derivative|, so that outliers alone are cut.",
    )


def _remarks(signal: float | None, repeat: float, rms: float, eps: float) -> list[str]:
    found = []
    if signal is not None:
        found.append(
            f"signal: two batches share {signal:.0%} of a derivative's variance; the rest is noise of the batch."
        )
    if repeat:
        found.append(
            f"noise: the loss changes by {repeat:.2g} when nothing moves, as a difference of {rms * eps * 2:.2g} is "
            "measured. Let the closure return the same loss for the same values."
        )
    return found


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


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
