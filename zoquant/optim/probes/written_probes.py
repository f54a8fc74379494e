"""Probes of values: each is written into the model, and takes a forward of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from zoquant.kernels.noise.definition import Noise
from zoquant.optim.closures import AnyClosure, loss_of, mean_loss
from zoquant.optim.probes.probe import Probe
from zoquant.views.model_views import Views


@dataclass(frozen=True)
class WrittenProbes:
    """Evaluates probes one after the other.

    Attributes:
        views: the views of each group.
        noises: the distribution of the directions of each group.
        forwards: evaluations of a step.
    """

    views: Sequence[Views]
    noises: Sequence[Noise]
    forwards: int

    together: ClassVar[bool] = False
    repeat: ClassVar[int] = 1

    def losses(
        self, plan: Sequence[Probe], closure: AnyClosure | Sequence[AnyClosure], weights: Sequence[float] | None,
        step: int,
    ) -> list[float]:  # fmt: skip
        loss = mean_loss(closure, weights)
        return [self.loss(probe, loss, step) for probe in plan]

    def loss(self, probe: Probe, closure: AnyClosure, step: int) -> float:
        for group, (views, noise) in enumerate(zip(self.views, self.noises, strict=True)):
            seed, eps = probe.of(group)
            views.write(seed=seed, eps=eps, noise=noise)
        with torch.no_grad():
            returned = closure()
        return loss_of(returned, step)

    def share_moved(self, group: int, seed: int, eps: float) -> float:
        return self.views[group].share_moved(seed, eps, self.noises[group].kind)  # as if it were not sparse
