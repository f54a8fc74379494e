"""Choosing the numbers of a run: eps, lr and clip, from what was measured or by rule.

Eps. Of the eps whose errors are smallest the one nearest to `PREFERRED`.

Lr. With rms derivative d and n probes, a step moves an element by lr · gain(d/√n). Over a run these moves add up like a
random walk to lr · gain · √Σ s_t², with s_t the schedule relative to its first rate. The lr makes this `WALK`, as a
share of the values. It is kept below the best single step for the measured curvature, lr = n / h with
h = mean of (L₊ + L₋ − 2 L₀) / ε².

Clip. `CLIP` times the median of |d|: about four standard deviations of a normal distribution.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zoquant.errors import FLOAT16_OVERFLOWS, LossError
from zoquant.optim.estimators import Clip
from zoquant.record.rules import Rule

PREFERRED = 3e-2
"""Of several eps that are equally good the one nearest to this share is taken."""
EXAMPLES = 120
"""A run on rows and columns that sees fewer examples walks less far."""
WALK = 0.15
"""How far a run may go, as a share of the values: what tuning by hand came to on the models that were tried."""
CLIP = 6.0
"""Multiple of the median |d|."""

_EQUAL = 1.5
_GOOD_ENOUGH = 0.1
_STEPS = 1000


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


@dataclass(frozen=True, kw_only=True)
class Given:
    """What is known of a run before it is measured.

    Attributes:
        unit: what an eps of 1 would be in relative space: 1 there, the median absolute value in absolute space.
        rule, probes: of the run.
        eps, lr, clip: the present numbers.
        choose: which of them to choose.
        schedule: learning rates of the run to come, relative to the first; None is not known.
    """

    unit: float
    rule: Rule
    probes: int
    eps: float
    lr: float
    clip: Clip
    choose: Sequence[str]
    schedule: Sequence[float] | None


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

    The mean of n of them has the rms 1/√n, so the lr that makes a run walk `WALK` of a value is known beforehand. A
    run of m examples in all, fewer than `EXAMPLES`, walks √(m / `EXAMPLES`) of that: as noise it would do harm.

    `directions` is n, `schedule` the learning rates of the run, relative to the first. Numbers that are given are kept.
    """
    step = 1 / math.sqrt(directions)
    share = min(1.0, math.sqrt(directions * len(schedule) / EXAMPLES))
    walk = share * WALK / (rule.gain(step) * _length(schedule))
    why_eps = f"eps {eps:.3g} was given." if eps is not None else (
        f"eps {PREFERRED:.3g}: a derivative relative to those of the other examples does not depend on its size."
    )  # fmt: skip
    why_lr = f"lr {lr:.3g} was given." if lr is not None else (
        f"lr {walk:.3g}: the mean of {directions} such derivatives is of size {step:.2g}, and {len(schedule)} steps of "
        f"{walk * rule.gain(step):.2g} of a value add up to a walk of {share * WALK:.2g} of it"
        f"{'' if share == 1 else f', less than {WALK:.2g}, since {directions * len(schedule)} examples say little'}."
    )  # fmt: skip
    why_clip = "clip: none, since the derivatives of a step share their scale." if clip is None else "clip was given."
    return Numbers(PREFERRED if eps is None else eps, walk if lr is None else lr, clip, (why_eps, why_lr, why_clip), 0)


def choose_eps(given: Given, scan: Sequence[EpsFound]) -> tuple[float, str]:
    """Return the eps and why, or a LossError: of those that are as good as any the one nearest to `PREFERRED`."""
    if "eps" not in given.choose:
        return given.eps, f"eps {given.eps:.3g} was given; a probe moves {scan[0].moved:.0%} of the stored values."
    finite = [row for row in scan if math.isfinite(row.derivative)]
    if not finite:
        raise LossError(f"calibration: no probe has a finite loss, at any eps. Look at the batch. {FLOAT16_OVERFLOWS}")
    most = max(row.moved for row in finite)
    moving = [row for row in finite if row.moved >= 0.9 * most]
    least = min(moving, key=lambda row: row.error)
    allowed = max(_EQUAL * least.error, _GOOD_ENOUGH * least.derivative)
    best = [row for row in moving if row.error <= allowed]
    taken = min(best, key=lambda row: abs(math.log(row.eps / (PREFERRED * given.unit))))
    return taken.eps, (
        f"eps {taken.eps:.3g}: rounding adds {taken.noise:.2g} and curvature {taken.bias:.2g} to a derivative of "
        f"{taken.derivative:.3g}; {len(best)} of {len(scan)} eps are as good, and this one is nearest to "
        f"{PREFERRED * given.unit:.3g}; a probe moves {taken.moved:.0%} of the stored values."
    )


def choose_lr(given: Given, rms: float, raw: float, curvature: float) -> tuple[float, str]:
    """Return the lr and why, from rms derivatives as applied and as measured, and the mean curvature."""
    if "lr" not in given.choose:
        return given.lr, f"lr {given.lr:.3g} was given."
    schedule = [1.0] * _STEPS if given.schedule is None else given.schedule
    gain = given.rule.gain(rms / math.sqrt(given.probes))
    walk = WALK * given.unit / (gain * _length(schedule))
    steps = f"{len(schedule)} steps" if given.schedule is not None else f"{_STEPS} steps, since the number is not known"
    text = f"{steps} of {walk * gain / given.unit:.2g} of a value add up to a walk of {WALK:.2g} of it"
    limit = raw * math.sqrt(given.probes) / (curvature * gain) if curvature > 0 else math.inf
    if limit < walk:
        best = f"the best single step for a curvature of {curvature:.3g}"
        return limit, f"lr {limit:.3g}: {best}; {text}, which is longer."
    return walk, f"lr {walk:.3g}: at a derivative of {rms:.3g}, {text}."


def choose_clip(given: Given, median: float) -> tuple[Clip, str]:
    """Return the clip and why, from the median of |derivative|."""
    if "clip" not in given.choose:
        return given.clip, "clip was given." if given.clip is not None else "clip: none, as given."
    if not median:
        return None, "clip: none, since most derivatives are 0."
    why = f"{CLIP:g} times the median of |derivative|, so that outliers alone are cut"
    return CLIP * median, f"clip {CLIP * median:.3g}: {why}."


def remarks(signal: float | None, repeat: float, rms: float, eps: float) -> list[str]:
    """Return what else should be known: how much of a derivative is noise."""
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


def _length(schedule: Sequence[float]) -> float:
    """Return how far a random walk goes whose steps are the rates of a schedule."""
    return math.sqrt(sum(rate**2 for rate in schedule))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
