"""Zeroth-order optimization of views: losses alone, no gradient; kept are base, delta and what a rule asks for."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch

from zoquant.errors import BaseMismatchError, LossError
from zoquant.kernels.noise.definition import Kind, Noise, as_noise, step_seed
from zoquant.optim.calibration import Calibration, Plan, calibrate
from zoquant.optim.closures import Closure, loss_of, mean_loss
from zoquant.optim.estimators import ESTIMATORS, Clip, Estimator, RobustClip, TwoPoint, clipped
from zoquant.protocol import PLAIN_ROLES
from zoquant.record.mover import Step, directions_of
from zoquant.record.rows_and_columns import Subspace
from zoquant.record.rules import SGD, Rule
from zoquant.record.trajectory import Trajectory
from zoquant.views.flat_buffer import SPACES, Space
from zoquant.views.model_views import Views

_MOVED_WARNING = 0.5
_FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class StepResult:
    """What a step saw.

    Attributes:
        loss: mean of the losses of its evaluations.
        derivative: mean over its directions of the derivative, as measured, before clipping.
        clipped: whether a derivative was cut.
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


class Evaluation(NamedTuple):
    """One loss that a step asks for: at theta + eps · z(seed), at theta itself where seed is None."""

    seed: int | None
    eps: float


class ZOSGD(torch.optim.Optimizer):
    """Descent along random directions.

    With n directions z_k and their derivatives d_k, as an estimator finds them,

        g = 1/n · Σ clip(d_k, −C, C) · z_k,    delta ← (1 − lr · decay) · delta − lr · rule(g)

    and with the defaults, d = (L(theta + ε z) − L(theta − ε z)) / 2ε and delta ← delta − lr · d · z.

    Source: MeZO (arXiv 2305.17333, algorithm 1); the clip is QZO's (arXiv 2505.13430, equation 6).

    Args:
        views: what `attach` returned.
        lr: learning rate; `torch.optim.lr_scheduler` may change it from step to step.
        eps: length ε of a probe, in units of `space`: relative to each value, or absolute.
        clip: bound C on the derivative: a constant, a `RobustClip` that follows its scale, or None.
        seed: seed of the run: with the same data it gives the same bytes.
        probes: directions a step, averaged.
        noise: distribution of z: a name of `noise.KINDS`, or a `Noise` that is sparse.
        space: `"relative"`: theta = base · (1 + delta); `"absolute"`: theta = base + delta.
        estimator: where the loss is evaluated, and what is made of it: `TwoPoint()`, `OneSided()`, `FZOO()`.
        rule: how g moves delta: `SGD()`, `Momentum()`, `Sign()`, `Adam()`.
        decay: pull back to the base, per unit of lr; lr · decay is at most 1.

    Raises:
        ValueError: a number is out of its range, or coupled views shall move in absolute space.
        BaseMismatchError: the views hold a delta already.
    """

    subspace: ClassVar[Subspace] = "values"
    together: ClassVar[bool] = False
    """Whether evaluations share a forward, so that a closure is told how often to repeat its batch."""

    def __init__(
        self,
        views: Views,
        *,
        lr: float = 6e-3,
        eps: float = 3e-2,
        clip: Clip = None,
        seed: int = 0,
        probes: int = 1,
        noise: Kind | Noise = "rademacher",
        space: Space = "relative",
        estimator: Estimator | None = None,
        rule: Rule | None = None,
        decay: float = 0.0,
    ) -> None:
        estimator = TwoPoint() if estimator is None else estimator
        rule = SGD() if rule is None else rule
        _check("decay", decay, decay >= 0, "at least 0")
        _check_rates(lr, eps, clip, decay)
        _check("estimator", estimator, type(estimator) in ESTIMATORS.values(), f"one of {[*ESTIMATORS]}")
        _check("probes", probes, probes >= estimator.least_probes, f"at least {estimator.least_probes}")
        _check("space", space, space in SPACES, f"one of {SPACES}")
        if space == "absolute" and views.coupled_keys():
            first = " and ".join(views.coupled_keys()[0])
            raise ValueError(
                f"ZOSGD: space is 'absolute', but {first} share their delta, which is only right in relative space. "
                "Attach with coupled=False."
            )
        if space == "relative":
            _warn_of_zeros(views)
        if any(bool(buffer.delta.any()) for buffer in views.buffers):
            raise BaseMismatchError(
                "ZOSGD: the views hold a delta, expected their base: a trajectory replays from the base alone. Call "
                "views.reset() first, or go on with the run's trajectory: ZOSGD(...).resume(trajectory)."
            )
        run = Trajectory(
            views.fingerprints(), space, as_noise(noise), views.coupled, estimator.name, rule, float(decay),
            subspace=self.subspace,
        )  # fmt: skip
        run.header()  # refuses a rule that no file could name
        super().__init__([buffer.delta for buffer in views.buffers], {"lr": lr, "eps": eps, "clip": clip})
        self.views = views
        self.estimator: Estimator = estimator
        self.seed = seed
        self.probes = probes
        views.space = space
        self._follow(run)
        self._moved: float | None = None

    @property
    def steps(self) -> int:
        """The number of steps so far, undone ones included."""
        return len(self.trajectory.steps)

    def step(  # type: ignore[override]
        self, closure: Closure | Sequence[Closure], weights: Sequence[float] | None = None
    ) -> StepResult:
        """Do one step.

        Args:
            closure: returns the loss at the model's present values; it is called once for each of `plan()` and must see
                the same batch each time. It runs without gradients. Several closures are the micro-batches of one step:
                the loss is their weighted mean.
            weights: weight of each micro-batch, such as its number of examples; None weighs all the same.

        Raises:
            ValueError: a scheduler set a rate out of its range, or the weights do not fit. Nothing has changed.
            LossError: a loss is no number, NaN or infinite. The step is undone and counts as a step of length 0.
            Exception: whatever the closure raises, KeyboardInterrupt too; the step is undone and does not count.
        """
        plan, loss = self.plan(), mean_loss(closure, weights)
        return self._step(lambda: [self._evaluate(loss, evaluation) for evaluation in plan])

    def plan(self) -> list[Evaluation]:
        """Return the evaluations of the next step. Workers may share them out; `apply` wants the losses in this order.

        Raises:
            ValueError: a scheduler set a rate out of its range.
        """
        _, eps, _ = self._rates()
        seeds = directions_of(self._seeds(), self.probes)
        return [
            Evaluation(None, 0.0) if point.probe is None else Evaluation(seeds[point.probe], point.sign * eps)
            for point in self.estimator.points(self.probes)
        ]

    def loss_at(self, evaluation: Evaluation, closure: Closure, *, restore: bool = True) -> float:
        """Return the loss of one evaluation and leave the model at theta, as it was.

        Args:
            evaluation: one of `plan()`.
            closure: as for `step`.
            restore: False leaves the model at the probe, for a caller who goes on with another one or with `apply`.

        Raises:
            LossError: the loss is no number, NaN or infinite.
        """
        try:
            return self._evaluate(closure, evaluation)
        finally:
            if restore:
                self.views.write()

    def apply(self, losses: Sequence[float]) -> StepResult:
        """Do the update of a step whose losses are known, wherever they were evaluated.

        Args:
            losses: the loss of each of `plan()`, in that order.

        Raises:
            ValueError: there are too few or too many losses. Nothing has changed.
            LossError: a loss or a derivative is not finite. The step counts as a step of length 0.
        """
        vars(self)["_opt_called"] = True  # schedulers of torch ask whether a step came before their own
        lr, eps, _ = self._rates()
        try:
            measured, done = self.step_of(losses)
            moved = self._measure_moved(done.seeds[0], eps) if self._moved is None else self._moved
        except LossError:
            self._undo()
            raise
        except BaseException:
            self.views.write()
            raise
        self._moved = moved
        self.extend([done])
        return StepResult(
            loss=sum(losses) / len(losses),
            derivative=sum(measured) / len(measured),
            clipped=measured != done.derivatives,
            moved=moved,
            lr=lr,
            step=self.steps - 1,
        )

    def step_of(self, losses: Sequence[float]) -> tuple[tuple[float, ...], Step]:
        """Return what the losses of a step come to, without doing it: derivatives as measured, and the step.

        Args:
            losses: the loss of each of `plan()`, in that order.

        Raises:
            ValueError: there are too few or too many losses.
            LossError: a loss or a derivative is not finite.
        """
        lr, eps, clip = self._rates()
        count = len(self.estimator.points(self.probes))
        _check("losses", list(losses), len(losses) == count, f"{count} of them, one for each of plan()")
        for loss in losses:
            loss_of(loss, self.steps)
        measured = self._derivatives(losses, eps)
        window = clip.window if isinstance(clip, RobustClip) else 0
        seen = [step.derivatives for step in self.trajectory.steps[-window:]] if window else []
        done = Step(self._seeds(), clipped(measured, clip, seen), lr)
        self._check_length(done)
        return measured, done

    def extend(self, steps: Sequence[Step]) -> None:
        """Do steps whose derivatives are known, such as those of another worker: deltas, model and trajectory follow.

        Args:
            steps: the steps, in order; their derivatives are applied as they are.
        """
        try:
            self._mover.advance(steps)
            self.views.write()
            self.trajectory.steps.extend(steps)
        except BaseException:
            self._follow(self.trajectory)
            self.views.write()
            raise

    def calibrate(
        self,
        closure: Closure | Sequence[Closure],
        *,
        choose: Sequence[str] = ("lr", "eps", "clip"),
        schedule: Sequence[float] | None = None,
    ) -> Calibration:
        """Measure the loss around theta and set eps, lr and clip. The model stays bit for bit as it was.

        Call it before a scheduler is made, which would remember the old lr.

        Args:
            closure: returns the loss of a batch, as for `step`; of several closures, one a batch, the first two are
                used, and say how much of a derivative is noise of the batch. It may draw a new batch at each call, but
                then the difference of two batches is noise in every derivative.
            choose: which of `"lr"`, `"eps"` and `"clip"` to set; the others are kept, and measured with.
            schedule: the learning rate of each step of the run to come, relative to the first; None stands for 1,000
                steps at a constant rate.

        Raises:
            LossError: the loss at theta is no finite number, or no probe has a finite loss.
            ValueError: `choose` names something else.
        """
        for name in choose:
            _check("choose", name, name in ("lr", "eps", "clip"), "some of lr, eps and clip")
        batches = [closure] if callable(closure) else list(closure)
        lr, eps, clip = self._rates()
        seed = self.seed

        def loss(direction: int | None, length: float, batch: int) -> float:
            at = None if direction is None else step_seed(seed, -1, direction)
            return self._evaluate(batches[batch], Evaluation(at, length))

        try:
            found = calibrate(Plan(
                loss, len(batches), lambda length: self._share_moved(step_seed(seed, -1), length),
                self._unit(), self.estimator, self.trajectory.rule, self.probes, eps, lr, clip, choose, schedule,
            ))  # fmt: skip
        finally:
            self.views.write()
        self.param_groups[0].update(lr=found.lr, eps=found.eps, clip=found.clip)
        return found

    def resume(self, trajectory: Trajectory) -> None:
        """Go on from a trajectory: its steps are replayed, the next step is the one that would have followed.

        Args:
            trajectory: of a run with the same seed, probes, noise, space, estimator, rule and decay. It is copied.

        Raises:
            BaseMismatchError: the trajectory was made on another base, or on other views.
            ValueError: it has other settings; the first one is named.
        """
        _check(
            "probes", self.probes, self.probes == (trajectory.probes or self.probes), f"{trajectory.probes!r}, {_AS}"
        )
        for name in ("noise", "space", "subspace", "estimator", "rule", "decay"):
            got, expected = getattr(self.trajectory, name), getattr(trajectory, name)
            _check(name, got, got == expected, f"{expected!r}, {_AS}")
        trajectory.check(self.views)
        self._follow(trajectory.copy())
        self.views.write()

    def state_dict(self) -> dict[str, Any]:
        """Return settings, seed and trajectory: all that it takes to go on, in tens of bytes a step.

        It holds numbers, strings and tensors alone, so that `torch.load(weights_only=True)` reads it. What the rule
        remembers is not in it: the trajectory brings it back.
        """
        groups = [{k: _plain(v) for k, v in group.items() if k != "params"} for group in self.param_groups]
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
            ValueError: the state is that of another kind of optimizer. Nothing has changed.
        """
        trajectory = Trajectory.from_dict(state_dict["trajectory"], "state_dict")
        trajectory.check(self.views)
        _check("subspace", self.subspace, self.subspace == trajectory.subspace, f"{trajectory.subspace!r}, {_AS}")
        _check("estimator", trajectory.estimator, trajectory.estimator in ESTIMATORS, f"one of {[*ESTIMATORS]}")
        self.estimator = ESTIMATORS[trajectory.estimator]()
        self.views.space = trajectory.space
        self._follow(trajectory)
        self.views.write()
        self.seed, self.probes, self._moved = state_dict["seed"], state_dict["probes"], state_dict["moved"]
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)
            if isinstance(group["clip"], dict):
                group["clip"] = RobustClip(**group["clip"])

    def _follow(self, trajectory: Trajectory) -> None:
        """Take over a trajectory: deltas, and what the rule remembers, become what its steps leave."""
        self.trajectory = trajectory
        self._mover = trajectory.mover(self.views)
        self._mover.reset()
        self._mover.advance(trajectory.steps)

    def _undo(self) -> None:
        """Leave theta as it was and count a step of length 0."""
        self.views.write()
        self.trajectory.steps.append(Step(self._seeds(), (0.0,) * self.probes, float(self.param_groups[0]["lr"])))

    def _step(self, measure: Callable[[], list[float]]) -> StepResult:
        """Do the step whose losses are measured now; undo it where they cannot be."""
        try:
            losses = measure()
        except LossError:
            self._undo()
            raise
        except BaseException:
            self.views.write()
            raise
        return self.apply(losses)

    def _seeds(self) -> tuple[int, ...]:
        return tuple(step_seed(self.seed, self.steps, probe) for probe in range(self.probes))

    def _unit(self) -> float:
        """Return the eps that would move a value by itself: 1, or the median absolute value in absolute space."""
        if self.views.space == "relative":
            return 1.0
        values = torch.cat([self.views.base(key).abs().view(-1).cpu() for key in self.views.keys])
        return float(values[values > 0].median()) if bool(values.any()) else 1.0

    def _rates(self) -> tuple[float, float, Clip]:
        group = self.param_groups[0]
        lr, eps, clip = float(group["lr"]), float(group["eps"]), cast(Clip, group["clip"])
        _check_rates(lr, eps, clip, self.trajectory.decay)
        return lr, eps, clip

    def _evaluate(self, closure: Closure, evaluation: Evaluation) -> float:
        self.views.write(seed=evaluation.seed, eps=evaluation.eps, noise=self.trajectory.noise)
        with torch.no_grad():
            returned = closure()
        return loss_of(returned, self.steps)

    def _derivatives(self, losses: Sequence[float], eps: float) -> tuple[float, ...]:
        try:
            measured = self.estimator.derivatives(losses, eps)
        except (OverflowError, ZeroDivisionError):
            measured = (math.nan,)
        if not all(map(math.isfinite, measured)):
            raise LossError(
                f"step {self.steps}: the losses {losses[0]:g} and {losses[1]:g} have no finite difference quotient at "
                f"eps={eps:g}. The step was undone; raise eps, or look at the batch."
            )
        return measured

    def _check_length(self, step: Step) -> None:
        for amount in step.amounts:
            if not max(abs(amount), abs(step.lr * amount)) <= _FLOAT32_MAX:
                raise LossError(
                    f"step {self.steps}: a derivative of {amount:g} at lr={step.lr:g} is no step that float32 holds. "
                    "The step was undone; set clip, raise eps or lower lr."
                )

    def _measure_moved(self, seed: int, eps: float) -> float:
        moved = self._share_moved(seed, eps)
        if moved < _MOVED_WARNING:
            warnings.warn(
                f"a probe of eps={eps:g} changes only {moved:.1%} of the values once they are stored; the rest is lost "
                "to rounding. Raise eps.",
                stacklevel=3,
            )
        return moved

    def _share_moved(self, seed: int, eps: float) -> float:
        return self.views.share_moved(seed, eps, self.trajectory.noise.kind)


_AS = "as in the trajectory"


def _warn_of_zeros(views: Views) -> None:
    """Say which plain weights cannot move: relative to zero every step is zero."""
    still = [view.name for view in views if view.role in PLAIN_ROLES and not views.base(view.name).any()]
    if still:
        warnings.warn(
            f"{len(still)} of the views, such as {still[0]}, are zero everywhere and cannot move in relative space. "
            "Set space='absolute'.",
            stacklevel=3,
        )


def _plain(value: object) -> object:
    return asdict(value) if isinstance(value, RobustClip) else value


def _check_rates(lr: float, eps: float, clip: Clip, decay: float) -> None:
    _check("lr", lr, lr >= 0, "at least 0")
    _check(
        "lr", lr, lr * decay <= 1, f"at most 1 / decay = {1 / decay if decay else math.inf:g}: more leaps over the base"
    )
    _check("eps", eps, eps > 0, "above 0")
    _check("clip", clip, clip is None or isinstance(clip, RobustClip) or clip > 0, "above 0, or None")


def _check(name: str, value: object, good: bool, expected: str) -> None:
    if not good or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"ZOSGD: {name} is {value!r}, expected {expected}.")
