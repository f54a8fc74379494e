"""What decides the bytes of a training run."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from zoquant.buffer import Space
from zoquant.noise import Kind
from zoquant.protocol import Role

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a run, together with model and data.

    Attributes:
        steps: number of steps.
        batch_size: examples a step.
        lr: learning rate at the start; `schedule` takes it to zero.
        eps: length of a probe, in units of `space`.
        clip: bound on the derivative, or None.
        schedule: course of the learning rate.
        probes: directions a step.
        seed: seed of noise and batches.
        noise: distribution of the directions.
        space: what delta means.
        coupled: whether the views of one layer, role and shape share their delta.
        roles: which kinds of values move.
        include: patterns of keys that move; None for all.
        exclude: patterns of keys that do not.
    """

    steps: int = 300
    batch_size: int = 16
    lr: float = 6e-3
    eps: float = 3e-2
    clip: float | None = None
    schedule: Schedule = "linear"
    probes: int = 1
    seed: int = 0
    noise: Kind = "rademacher"
    space: Space = "relative"
    coupled: bool = True
    roles: tuple[Role, ...] = ("scale",)
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps is {self.steps} and batch_size {self.batch_size}, expected at least 1 each.")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule is {self.schedule!r}, expected one of {', '.join(get_args(Schedule))}.")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step: a pure function, so that a run can go on anywhere."""
        left = 1 - step / self.steps
        if self.schedule == "linear":
            return self.lr * left
        if self.schedule == "cosine":
            return self.lr * (1 - math.cos(math.pi * left)) / 2
        return self.lr
