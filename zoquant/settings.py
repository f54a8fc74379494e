"""What decides the bytes of a training run."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from zoquant.attach import Views
from zoquant.buffer import Space
from zoquant.estimators import ESTIMATORS
from zoquant.noise import Kind, Noise, Unit
from zoquant.optim import ZOSGD
from zoquant.protocol import Role
from zoquant.rules import RULES

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a run, together with model and data.

    Attributes:
        steps: number of steps.
        batch_size: examples a step.
        micro_batches: forwards that a loss is made of, a power of 2: each sees its part of the batch.
        lr: learning rate at the start; `schedule` takes it to zero. None: calibrated.
        eps: length of a probe, in units of `space`. None: calibrated.
        clip: bound on the derivative, infinity for none. None: calibrated with lr and eps, or none if both are given.
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
        include: patterns of keys that move; None for all.
        exclude: patterns of keys that do not.
    """

    steps: int = 300
    batch_size: int = 16
    micro_batches: int = 1
    lr: float | None = None
    eps: float | None = None
    clip: float | None = None
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
        if not (1 <= self.micro_batches <= self.batch_size and self.micro_batches.bit_count() == 1):
            most = f"expected a power of 2 of at most batch_size, {self.batch_size}"
            raise ValueError(f"micro_batches is {self.micro_batches}, {most}.")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule is {self.schedule!r}, expected one of {', '.join(get_args(Schedule))}.")

        for name, value, known in (("estimator", self.estimator, ESTIMATORS), ("rule", self.rule, RULES)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}.")

    @property
    def missing(self) -> tuple[str, ...]:
        """The numbers that a calibration has to choose."""
        names = tuple(name for name in ("lr", "eps") if getattr(self, name) is None)
        return (*names, "clip") if names and self.clip is None else names

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step relative to the first: a pure function, so that a run goes on anywhere."""
        left = 1 - step / self.steps
        if self.schedule == "linear":
            return left
        if self.schedule == "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        return 1.0

    def optimizer(self, views: Views) -> ZOSGD:
        """Return the optimizer; numbers that are missing stand at its defaults."""
        chosen: dict[str, Any] = {
            name: getattr(self, name) for name in ("lr", "eps") if getattr(self, name) is not None
        }
        return ZOSGD(
            views, clip=None if self.clip == math.inf else self.clip, seed=self.seed, probes=self.probes,
            noise=Noise(self.noise, self.density, self.unit), space=self.space, decay=self.decay,
            estimator=ESTIMATORS[self.estimator](), rule=RULES[self.rule](), **chosen,
        )  # fmt: skip
