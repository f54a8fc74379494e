"""Estimators: where a step evaluates the loss, and what it makes of the losses. Pure functions of numbers.

A step of n probes estimates the gradient as g = 1/n · Σ d_k · z_k. An estimator names the points of the evaluations and
turns their losses, in that order, into the derivatives d_k, whoever evaluated which. A clip bounds them afterwards. Its
`name` is what files and the command line call it, `least_probes` the fewest that it can work with, and `bias_order` the
power of eps that its bias grows with.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple


class Point(NamedTuple):
    """One evaluation: theta + sign · eps · z of a probe; `probe` is None for theta itself."""

    probe: int | None
    sign: int


@dataclass(frozen=True)
class TwoPoint:
    """d_k = (L(theta + ε z_k) − L(theta − ε z_k)) / 2ε. Two evaluations a probe, bias of order ε².

    Source: Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient approximation",
    1992, equation 2.2; MeZO (arXiv 2305.17333, definition 1).
    """

    name: ClassVar[str] = "two-point"
    least_probes: ClassVar[int] = 1
    bias_order: ClassVar[int] = 2

    def points(self, probes: int) -> list[Point]:
        """Return the evaluations of a step."""
        return [Point(probe, sign) for probe in range(probes) for sign in (1, -1)]

    def derivatives(self, losses: Sequence[float], eps: float) -> tuple[float, ...]:
        """Return the derivative of each probe from the losses, in the order of `points`."""
        return tuple((plus - minus) / (2 * eps) for plus, minus in zip(losses[::2], losses[1::2], strict=True))


@dataclass(frozen=True)
class OneSided:
    """d_k = (L(theta + ε z_k) − L(theta)) / ε. One evaluation a probe and one more, which all probes share.

    The bias is of order ε: half the curvature along z.

    Source: Nesterov and Spokoiny, "Random gradient-free minimization of convex functions", 2017, equation 30.
    """

    name: ClassVar[str] = "one-sided"
    least_probes: ClassVar[int] = 1
    bias_order: ClassVar[int] = 1

    def points(self, probes: int) -> list[Point]:
        return [Point(None, 0), *(Point(probe, 1) for probe in range(probes))]

    def derivatives(self, losses: Sequence[float], eps: float) -> tuple[float, ...]:
        return tuple((loss - losses[0]) / eps for loss in losses[1:])


@dataclass(frozen=True)
class FZOO(OneSided):
    """d_k = (L(theta + ε z_k) − L(theta)) / (ε σ), with σ the standard deviation of the n perturbed losses.

    σ is taken over n − 1, and is about ε times the norm of the gradient, so this is normalized SGD: a step does not
    depend on the scale of the loss, and d_k is about 1 / ε. If all losses are equal the derivatives are 0.

    Source: FZOO (arXiv 2506.09034, algorithm 1).
    """

    name: ClassVar[str] = "fzoo"
    least_probes: ClassVar[int] = 2

    def derivatives(self, losses: Sequence[float], eps: float) -> tuple[float, ...]:
        spread = statistics.stdev(losses[1:])
        return tuple((loss - losses[0]) / (eps * spread) if spread else 0.0 for loss in losses[1:])


@dataclass(frozen=True)
class GroupRelative(TwoPoint):
    """d_k = δ_k / s, with δ_k = L(theta + ε z_k) − L(theta − ε z_k) and s the standard deviation of δ over n probes.

    s is taken over n. A step does not depend on the scale of the loss, nor on ε: in g = 1/n · Σ d_k · z_k the weights
    are of size 1. If all δ are equal the derivatives are 0. GRZO divides g by another 2ε, which is part of lr here, and
    adds a small number to s. Its directions are one shared matrix with the signs of rows and columns flipped for each
    example, U ⊙ r sᵀ; those of `ZOSGD` on rows and columns are a row part plus a column part, of each example's own.

    Source: GRZO (arXiv 2606.02857), its abstract, and its update as the zij optimizer library documents it (a_i = δ_i /
    (s + ε), g = 1/(2σB) Σ a_i z_i); the paper itself was not at hand.
    """

    name: ClassVar[str] = "group-relative"
    least_probes: ClassVar[int] = 2

    def derivatives(self, losses: Sequence[float], eps: float) -> tuple[float, ...]:
        differences = [plus - minus for plus, minus in zip(losses[::2], losses[1::2], strict=True)]
        spread = statistics.pstdev(differences) if all(map(math.isfinite, differences)) else math.nan
        return tuple(difference / spread if spread else 0.0 for difference in differences)


Estimator = TwoPoint | OneSided
ESTIMATORS: dict[str, type[TwoPoint] | type[OneSided]] = {
    estimator.name: estimator for estimator in (TwoPoint, OneSided, FZOO, GroupRelative)
}


@dataclass(frozen=True)
class RobustClip:
    """Bound on the derivative that follows its running scale: multiple · median of the last |d| as they were applied.

    The scale is taken from the trajectory, so a run that goes on finds the same bound. No bound holds for the first
    `least` steps.

    Attributes:
        multiple: of the median; 6 is about four standard deviations of a normal distribution.
        window: steps that the median looks back.
        least: steps before the first bound.

    Source: the clip is QZO's (arXiv 2505.13430, equation 6); the running median makes it independent of the loss.
    """

    multiple: float = 6.0
    window: int = 64
    least: int = 8

    def __post_init__(self) -> None:
        if not (self.multiple > 0 and 1 <= self.least <= self.window):
            raise ValueError(f"clip is {self!r}, expected a multiple above 0 and 1 ≤ least ≤ window.")

    def bound(self, applied: Sequence[Sequence[float]]) -> float | None:
        """Return the bound after steps of such derivatives, None where there is none yet; one of zeros was undone."""
        recent = [abs(d) for step in applied[-self.window :] if any(step) for d in step]
        if len(applied) < self.least or not recent:
            return None
        return self.multiple * statistics.median(recent) or None


Clip = float | RobustClip | None
"""Bound on the derivative: a constant C, a multiple of its running median, or none."""


def clipped(derivatives: Sequence[float], clip: Clip, applied: Sequence[Sequence[float]] = ()) -> tuple[float, ...]:
    """Return max(−C, min(C, d)) for each derivative; `applied` are those of the steps so far, as they were applied.

    Source: QZO (arXiv 2505.13430, equation 6).
    """
    bound = clip.bound(applied) if isinstance(clip, RobustClip) else clip
    return tuple(d if bound is None else max(-bound, min(bound, d)) for d in derivatives)
