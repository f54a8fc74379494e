"""Zeroth-order SGD on views: two losses a direction, no gradient, nothing kept but base and delta."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from zoquant.attach import Views
from zoquant.buffer import SPACES, Space
from zoquant.errors import BaseMismatchError, LossError
from zoquant.noise import KINDS, Kind, step_seed
from zoquant.trajectory import Step, Trajectory, apply_step, replay

Closure = Callable[[], Tensor | float]

_MOVED_WARNING = 0.5


@dataclass(frozen=True)
class StepResult:
    """What a step saw.

    Attributes:
        loss: mean of the losses of its probes.
        derivative: mean over its directions of (L+ − L−) / 2ε, as measured, before clipping.
        clipped: whether a derivative was cut.
        moved: share of the stored values that the first probe of the run changed, after the cast to their dtype.
        lr: learning rate of this step.
        step: number of this step, from 0.
    """

    loss: float
    derivative: float
    clipped: bool
    moved: float
    lr: float
    step: int


class ZOSGD(torch.optim.Optimizer):
    """Stochastic gradient descent along random directions.

        d = (L(theta + ε z) − L(theta − ε z)) / 2ε,    delta ← delta − lr · clip(d, −C, C) · z

    Source: MeZO (arXiv 2305.17333, algorithm 1); the clip is QZO's (arXiv 2505.13430, equation 6).

    Args:
        views: what `attach` returned.
        lr: learning rate; `torch.optim.lr_scheduler` may change it from step to step.
        eps: length ε of a probe, in units of `space`: relative to each value, or absolute.
        clip: bound C on the derivative; None for none.
        seed: seed of the run: with the same data it gives the same bytes.
        probes: directions a step, averaged.
        noise: distribution of z: `"rademacher"` or `"gaussian"`.
        space: `"relative"`: theta = base · (1 + delta); `"absolute"`: theta = base + delta.

    Raises:
        ValueError: a number is out of its range, or coupled views shall move in absolute space.
        BaseMismatchError: the views hold a delta already.
    """

    def __init__(
        self,
        views: Views,
        *,
        lr: float = 6e-3,
        eps: float = 3e-2,
        clip: float | None = None,
        seed: int = 0,
        probes: int = 1,
        noise: Kind = "rademacher",
        space: Space = "relative",
    ) -> None:
        _check_rates(lr, eps, clip)
        _check("probes", probes, probes >= 1, "at least 1")
        _check("noise", noise, noise in KINDS, f"one of {KINDS}")
        _check("space", space, space in SPACES, f"one of {SPACES}")
        if space == "absolute" and views.coupled_keys():
            first = " and ".join(views.coupled_keys()[0])
            raise ValueError(
                f"ZOSGD: space is 'absolute', but {first} share their delta, which is only right in relative space. "
                "Attach with coupled=False."
            )
        if any(bool(buffer.delta.any()) for buffer in views.buffers):
            raise BaseMismatchError(
                "ZOSGD: the views hold a delta, expected their base: a trajectory replays from the base alone. Call "
                "views.reset() first, or go on with the run's trajectory: ZOSGD(...).resume(trajectory)."
            )
        super().__init__([buffer.delta for buffer in views.buffers], {"lr": lr, "eps": eps, "clip": clip})
        self.views = views
        self.seed = seed
        self.probes = probes
        views.space = space
        self.trajectory = Trajectory(views.fingerprints(), space, noise, views.coupled)
        self._moved: float | None = None

    @property
    def steps(self) -> int:
        """The number of steps so far, undone ones included."""
        return len(self.trajectory.steps)

    def step(self, closure: Closure) -> StepResult:  # type: ignore[override]
        """Do one step.

        Args:
            closure: returns the loss at the model's present values; it is called twice a direction and must see the
                same batch each time. It runs without gradients.

        Raises:
            ValueError: a scheduler set a rate out of its range. Nothing has changed.
            LossError: a loss is no number, NaN or infinite. The step is undone and counts as a step of length 0.
            Exception: whatever the closure raises, KeyboardInterrupt too; the step is undone and does not count.
        """
        group = self.param_groups[0]
        lr, eps, clip = float(group["lr"]), float(group["eps"]), cast(float | None, group["clip"])
        _check_rates(lr, eps, clip)
        seeds = tuple(step_seed(self.seed, self.steps, probe) for probe in range(self.probes))
        try:
            losses = [(self._loss(closure, seed, eps), self._loss(closure, seed, -eps)) for seed in seeds]
            measured = [self._derivative(plus, minus, eps) for plus, minus in losses]
            if self._moved is None:
                self._moved = self._measure_moved(seeds[0], eps)
        except LossError:
            self.views.write()
            self.trajectory.steps.append(Step(seeds, (0.0,) * self.probes, lr))
            raise
        except BaseException:
            self.views.write()
            raise
        applied = tuple(d if clip is None else max(-clip, min(clip, d)) for d in measured)
        done = Step(seeds, applied, lr)
        try:
            apply_step(self.views, done, self.trajectory.noise)
            self.views.write()
            self.trajectory.steps.append(done)
        except BaseException:
            replay(self.trajectory, self.views)
            raise
        return StepResult(
            loss=sum(plus + minus for plus, minus in losses) / (2 * len(losses)),
            derivative=sum(measured) / len(measured),
            clipped=tuple(measured) != applied,
            moved=self._moved,
            lr=lr,
            step=self.steps - 1,
        )

    def resume(self, trajectory: Trajectory) -> None:
        """Go on from a trajectory: its steps are replayed, the next step is the one that would have followed.

        Args:
            trajectory: of a run with the same seed, probes, noise and space. It is copied.

        Raises:
            BaseMismatchError: the trajectory was made on another base, or on other views.
            ValueError: it has another number of probes, another noise or another space.
        """
        here, run = self.trajectory, trajectory
        for name, got, expected in (
            ("probes", self.probes, run.probes or self.probes),
            ("noise", here.noise, run.noise),
            ("space", here.space, run.space),
        ):
            _check(name, got, got == expected, f"{expected!r}, as in the trajectory")
        replay(run, self.views)
        self.trajectory = run.copy()

    def state_dict(self) -> dict[str, Any]:
        """Return settings, seed and trajectory: all that it takes to go on, in tens of bytes a step.

        It holds numbers, strings and tensors alone, so that `torch.load(weights_only=True)` reads it.
        """
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {
            "state": {},
            "param_groups": groups,
            "seed": self.seed,
            "probes": self.probes,
            "moved": self._moved,
            "trajectory": self.trajectory.to_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, replaying its trajectory.

        Raises:
            BaseMismatchError: the state belongs to another base. Nothing has changed.
            CheckpointError: the state is damaged. Nothing has changed.
        """
        trajectory = Trajectory.from_dict(state_dict["trajectory"], "state_dict")
        replay(trajectory, self.views)
        self.trajectory = trajectory
        self.seed, self.probes, self._moved = state_dict["seed"], state_dict["probes"], state_dict["moved"]
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)

    def _loss(self, closure: Closure, seed: int, eps: float) -> float:
        self.views.write(seed=seed, eps=eps, noise=self.trajectory.noise)
        with torch.no_grad():
            returned = closure()
        try:
            loss = float(returned)
        except (TypeError, ValueError, RuntimeError) as error:
            raise LossError(
                f"step {self.steps}: the closure returned {_kind(returned)}, expected one number. The step was undone; "
                "return the loss as a float or as a tensor of one element."
            ) from error
        if not math.isfinite(loss):
            raise LossError(
                f"step {self.steps}: the loss is {loss}, expected a finite number. The step was undone; lower eps or "
                "lr, or look at the batch."
            )
        return loss

    def _derivative(self, plus: float, minus: float, eps: float) -> float:
        derivative = (plus - minus) / (2 * eps)
        if not math.isfinite(derivative):
            raise LossError(
                f"step {self.steps}: the losses {plus:g} and {minus:g} have no finite difference quotient at eps="
                f"{eps:g}. The step was undone; raise eps, or look at the batch."
            )
        return derivative

    def _measure_moved(self, seed: int, eps: float) -> float:
        moved = self.views.share_moved(seed, eps, self.trajectory.noise)
        if moved < _MOVED_WARNING:
            warnings.warn(
                f"a probe of eps={eps:g} changes only {moved:.1%} of the values once they are stored; the rest is lost "
                "to rounding. Raise eps.",
                stacklevel=3,
            )
        return moved


def _kind(returned: object) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    return f"a {type(returned).__name__}"


def _check_rates(lr: float, eps: float, clip: float | None) -> None:
    _check("lr", lr, lr >= 0, "at least 0")
    _check("eps", eps, eps > 0, "above 0")
    _check("clip", clip, clip is None or clip > 0, "above 0, or None")


def _check(name: str, value: object, good: bool, expected: str) -> None:
    if not good or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"ZOSGD: {name} is {value!r}, expected {expected}.")
