"""What decides the bytes of a training run."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from zoquant.attach import Views
from zoquant.batched import BatchedZO
from zoquant.buffer import Space
from zoquant.calibration import Numbers, by_rule
from zoquant.estimators import ESTIMATORS, GroupRelative
from zoquant.factors import SUBSPACES, Subspace
from zoquant.noise import Kind, Noise, Unit
from zoquant.optim import ZOSGD
from zoquant.protocol import Role
from zoquant.rules import RULES

Schedule = Literal["constant", "linear", "cosine"]
AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a run, together with model and data.

    Attributes:
        steps: number of steps.
        batch_size: examples a step.
        lr: learning rate at the start; `schedule` takes it to zero. None: calibrated, or set by rule.
        eps: length of a probe, in units of `space`. None: calibrated, or set by rule.
        clip: bound on the derivative, infinity for none. None: calibrated with lr and eps, or none if both are given.
        subspace: what a direction is made of. `"values"`: a number for each value. `"rows-columns"`: a number for each
            row and column of a layer, and a direction of its own for each example, see `BatchedZO`; derivatives are
            group-relative, and lr and eps are set by rule. `"auto"`: `automatic.resolve` chooses; until it has, values.
        schedule: course of the learning rate.
        probes: directions a step.
        seed: seed of noise and batches.
        noise: distribution of the directions.
        density: share of `unit`s that a direction moves.
        unit: what is in or out as a whole: element, view or layer.
        space: what delta means.
        estimator: what is made of the losses: a name of `estimators.ESTIMATORS`.
        rule: how deltas move: a name of `rules.RULES`, with its default numbers.
        decay: pull back to the base, per unit of lr.
        coupled: whether the views of one layer, role and shape share their delta.
        roles: which kinds of values move.
        include: patterns of keys that move; None for all, or of rows and columns for those of `depth.upper_middle`.
        exclude: patterns of keys that do not.
    """

    steps: int = 300
    batch_size: int = 16
    lr: float | None = None
    eps: float | None = None
    clip: float | None = None
    subspace: Subspace | Literal["auto"] = AUTO
    schedule: Schedule = "linear"
    probes: int = 1
    seed: int = 0
    noise: Kind = "rademacher"
    density: float = 1.0
    unit: Unit = "element"
    space: Space = "relative"
    estimator: str = "two-point"
    rule: str = "sgd"
    decay: float = 0.0
    coupled: bool = True
    roles: tuple[Role, ...] = ("scale",)
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps is {self.steps} and batch_size {self.batch_size}, expected at least 1 each.")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule is {self.schedule!r}, expected one of {', '.join(get_args(Schedule))}.")
        if self.subspace not in (AUTO, *SUBSPACES):
            raise ValueError(f"subspace is {self.subspace!r}, expected one of {', '.join((AUTO, *SUBSPACES))}.")
        for name, value, known in (("estimator", self.estimator, ESTIMATORS), ("rule", self.rule, RULES)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}.")
        if self.subspace == "rows-columns":
            self._check_rows_columns()

    def _check_rows_columns(self) -> None:
        """Refuse what a direction for each example leaves no choice of."""
        for name, fits, expected in (
            ("batch_size", self.batch_size >= 2, "at least 2: a derivative is relative to those of the other examples"),
            ("estimator", self.estimator in ("two-point", "group-relative"), "group-relative"),
            ("probes", self.probes == 1, "1: each example has a direction of its own"),
            ("space", self.space == "relative", "relative"),
        ):
            if not fits:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, with subspace rows-columns expected {expected}. Or take "
                    "subspace values."
                )

    @property
    def missing(self) -> tuple[str, ...]:
        """The numbers that are not given: a calibration has to choose them, or for rows and columns a rule."""
        names = tuple(name for name in ("lr", "eps") if getattr(self, name) is None)
        if self.subspace == "rows-columns":
            return names
        return (*names, "clip") if names and self.clip is None else names

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step relative to the first: a pure function, so that a run goes on anywhere."""
        left = 1 - step / self.steps
        if self.schedule == "linear":
            return left
        if self.schedule == "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        return 1.0

    def by_rule(self) -> Numbers:
        """Return the numbers of a run on rows and columns: those that are not given are set without a forward."""
        rates = [self.rate_at(step) for step in range(self.steps)]
        clip = None if self.clip == math.inf else self.clip
        return by_rule(RULES[self.rule](), self.batch_size, rates, eps=self.eps, lr=self.lr, clip=clip)

    def optimizer(self, views: Views) -> ZOSGD:
        """Return the optimizer; numbers that a calibration has to choose stand at its defaults."""
        if self.subspace == "rows-columns":
            numbers = self.by_rule()
            return BatchedZO(
                views, directions=self.batch_size, lr=numbers.lr, eps=numbers.eps, clip=numbers.clip, seed=self.seed,
                noise=Noise(self.noise, self.density, self.unit), estimator=GroupRelative(), rule=RULES[self.rule](),
                decay=self.decay,
            )  # fmt: skip
        chosen: dict[str, Any] = {
            name: getattr(self, name) for name in ("lr", "eps") if getattr(self, name) is not None
        }
        return ZOSGD(
            views, clip=None if self.clip == math.inf else self.clip, seed=self.seed, probes=self.probes,
            noise=Noise(self.noise, self.density, self.unit), space=self.space, decay=self.decay,
            estimator=ESTIMATORS[self.estimator](), rule=RULES[self.rule](), **chosen,
        )  # fmt: skip
