"""Zeroth-order optimization of views: losses alone, no gradient; kept are base, delta and what a rule asks for.

Long: a third of it is what a caller has to know of arguments and errors.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from zoquant.errors import LossError
from zoquant.kernels.noise.definition import Kind, Noise, step_seed
from zoquant.optim.calibration import Calibration, Plan, calibrate, loss_along
from zoquant.optim.closures import AnyClosure
from zoquant.optim.estimators import Clip, Estimator, TwoPoint
from zoquant.optim.measuring import StepResult, made_step, measured, share_moved, warn_of_flat
from zoquant.optim.parameter_groups import (
    Rates,
    check,
    check_choice,
    check_run,
    described,
    opened,
    rates_of,
    unit_of,
)  # fmt: skip
from zoquant.optim.probes import Prober
from zoquant.optim.probes.probe import Probe
from zoquant.optim.run import Run
from zoquant.optim.state import check_same, check_subspace, read_state, state_dict
from zoquant.record.group import Subspace
from zoquant.record.rules import SGD, Rule
from zoquant.record.step import Step, directions_of
from zoquant.record.trajectory import Trajectory
from zoquant.views.flat_buffer import Space
from zoquant.views.model_views import Views

_LR: dict[Subspace, float] = {"values": 6e-3, "rows-columns": 4e-3}


class ZOSGD(torch.optim.Optimizer):
    """Descent along random directions.

    With n directions z_k and their derivatives d_k, as an estimator finds them,

        g = 1/n · Σ clip(d_k, −C, C) · z_k,    delta ← (1 − lr · decay) · delta − lr · rule(g)

    and with the defaults, d = (L(theta + ε z) − L(theta − ε z)) / 2ε. Several groups are probed at once: the difference
    of the losses along (ε₁z₁, ε₂z₂, ...), divided by 2ε_i, is the derivative of group i. A probe is written into the
    model; or with `subspace="rows-columns"` theta is base · (1 + u_row) · (1 + v_column), and all probes share a
    forward, each on rows of the batch of its own. With `split` each of n directions has 1/n of the examples, and a step
    costs two forwards of the batch; without it each sees all, at the cost of 2n.

    Source: MeZO (arXiv 2305.17333, algorithm 1); the clip is QZO's (arXiv 2505.13430, equation 6); GRZO (arXiv
    2606.02857) for a direction to each example.

    Args:
        views: what `attach` returned; or groups, each a mapping with `views` and whatever of lr, eps, clip, noise,
            space, rule and decay is not as below. No view in two groups.
        lr: learning rate, which `torch.optim.lr_scheduler` may change; None for 6e-3, of rows and columns 4e-3.
        eps: length ε of a probe, relative to each value or to 1 + u and 1 + v, or in absolute space absolute.
        clip: bound C on the derivative: a constant, a `RobustClip` that follows its scale, or None.
        seed: seed of the run: with the same data it gives the same bytes; of rows and columns on the same machine.
        probes: directions a step, averaged.
        noise: distribution of z: a name of `noise.KINDS`, or a `Noise` that is sparse.
        space: `"relative"`: theta = base · (1 + delta); `"absolute"`: theta = base + delta.
        estimator: where the loss is evaluated, and what is made of it; with `split` one of two sides.
        rule: how g moves delta, or u and v: `SGD()`, `Momentum()`, `Sign()`, `Adam()`.
        decay: pull back to the base, per unit of lr; lr · decay is at most 1.
        subspace: what a direction has numbers for: `"values"` or `"rows-columns"`.
        split: of rows and columns, whether the directions share the examples, as they do for None.

    Attributes:
        estimator, seed, probes, split: as above.

    Raises:
        ValueError: a setting is out of its range, or settings do not fit together or to the views.
        BaseMismatchError: views hold a delta already.
        UnsupportedLayoutError: a layer has no rows and columns; the message says what to leave out.
    """

    def __init__(
        self,
        views: Views | Iterable[Mapping[str, Any]],
        *,
        lr: float | None = None,
        eps: float = 3e-2,
        clip: Clip = None,
        seed: int = 0,
        probes: int = 1,
        noise: Kind | Noise = "rademacher",
        space: Space = "relative",
        estimator: Estimator | None = None,
        rule: Rule | None = None,
        decay: float = 0.0,
        subspace: Subspace = "values",
        split: bool | None = None,
    ) -> None:
        self.estimator: Estimator = TwoPoint() if estimator is None else estimator
        self.seed, self.probes = seed, probes
        self.split = split is not False and subspace == "rows-columns"
        check_run(self.estimator, probes, subspace, split)
        self._defaults = {
            "lr": _LR[subspace] if lr is None else lr, "eps": eps, "clip": clip, "noise": noise, "space": space,
            "rule": SGD() if rule is None else rule, "decay": decay,
        }  # fmt: skip
        self._moved: list[float] | None = None
        self._run = Run(self.estimator.name, subspace)
        self._complete = False
        super().__init__(described(views), {})
        self._complete = True
        self._run.settle()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, a mapping with `views` as above, which is probed together with those that are there.

        Raises:
            ValueError: the run has begun, or the group does not fit. Nothing has changed.
            BaseMismatchError, UnsupportedLayoutError: as above. Nothing has changed.
        """
        if self.steps:
            raise ValueError(
                f"ZOSGD: add_param_group after {self.steps} steps, expected before the first: a trajectory replays all "
                "groups from its beginning. Begin a new run with ZOSGD([...])."
            )
        views, record, rates = opened(param_group, self._defaults, self.trajectory)
        mover = record.mover(views, self.trajectory.subspace)
        super().add_param_group({"params": [buffer.delta for buffer in views.buffers], **rates._asdict()})
        self._run.add(views, record, mover)
        if self._complete:
            self._run.settle()

    @property
    def views(self) -> Views:
        """The views, where there is one group; a ValueError where there are several, which `all_views` has."""
        check("groups", len(self.all_views), len(self.all_views) == 1, "1: of several, all_views has the views")
        return self.all_views[0]

    @property
    def all_views(self) -> tuple[Views, ...]:
        """The views of each group."""
        return tuple(self._run.views)

    @property
    def trajectory(self) -> Trajectory:
        """The run so far."""
        return self._run.trajectory

    @property
    def steps(self) -> int:
        """The number of steps so far, undone ones included."""
        return len(self.trajectory.steps)

    @property
    def together(self) -> bool:
        """Whether probes share a forward, so that a closure is told how often to repeat its batch."""
        return self._prober.together

    @property
    def repeat(self) -> int:
        """How often the closure of `step` is told to repeat its batch; 1 where it is told nothing."""
        return self._prober.repeat

    @property
    def forwards(self) -> int:
        """How many forwards of the batch a step costs; one of a repeated batch counts as so many."""
        return self._prober.forwards

    def step(
        self, closure: AnyClosure | Sequence[AnyClosure] | None = None, weights: Sequence[float] | None = None
    ) -> Any:
        """Do one step.

        Args:
            closure: returns the loss at the model's present values; it is called once for each of `plan()`, without
                gradients, and must see the same batch each time. Of rows and columns it is called once, with `repeat`:
                it puts the batch so many times one below the other and returns the loss of each example, float
                `[repeat * examples]`. Several closures are the micro-batches of one step.
            weights: weight of each micro-batch, such as its number of examples; None weighs all the same. With `split`
                how many of the directions each has, in order.

        Returns:
            A `StepResult`; torch's own signature leaves no room to say so.

        Raises:
            ValueError: closures, weights or rates are out of their range. Nothing has changed.
            LossError: a loss is no number, NaN or infinite, or the losses are not one for each example. The step is
                undone and counts as a step of length 0.
            ShapeError, UnsupportedLayoutError: a layer did not see the rows of the batch. Nothing has changed.
            Exception: whatever the closure raises, KeyboardInterrupt too; the step is undone and does not count.
        """
        if closure is None:
            raise ValueError("ZOSGD: step got no closure, expected what returns the loss: there is no gradient.")
        plan = self.plan()
        try:
            losses = self._prober.losses(plan, closure, weights, self.steps)
        except LossError:
            self._undo()
            raise
        except BaseException:
            self.restore()
            raise
        return self.apply(losses)

    def plan(self) -> list[Probe]:
        """Return the probes of the next step. Workers may share them out; `apply` wants the losses in this order."""
        eps = [rates.eps for rates in self._rates()]
        seeds = directions_of(self._run.seeds(self.seed, self.probes), self.probes)
        return [
            Probe(None, (0.0,) * len(eps))
            if point.probe is None
            else Probe(seeds[point.probe], tuple(point.sign * each for each in eps))
            for point in self.estimator.points(self.probes)
        ]

    def loss_at(self, probe: Probe, closure: AnyClosure, *, restore: bool = True) -> float:
        """Return the loss of one of `plan()`, and leave the model at theta, as it was, or with `restore=False` at it.

        Args:
            probe: the probe.
            closure: as for `step`; it is told to repeat nothing.
            restore: False for a caller who goes on with another probe or with `apply`.

        Raises:
            LossError: the loss is no number, NaN or infinite.
        """
        try:
            return self._prober.loss(probe, closure, self.steps)
        finally:
            if restore:
                self.restore()

    def apply(self, losses: Sequence[float]) -> StepResult:
        """Do the update of a step from the loss of each of `plan()`, in that order, wherever it was evaluated.

        Raises:
            ValueError: there are too few or too many losses. Nothing has changed.
            LossError: a loss or a derivative is not finite. The step counts as a step of length 0.
        """
        vars(self)["_opt_called"] = True  # schedulers of torch ask whether a step came before their own
        try:
            found, done = self.step_of(losses)
            moved = self._moved or share_moved(self._prober, self._rates(), done.directions[0])
        except LossError:
            self._undo()
            raise
        except BaseException:
            self.restore()
            raise
        self._moved = moved
        self.extend([done])
        warn_of_flat(self.trajectory.steps)
        first = found[: self.probes]
        return StepResult(
            loss=sum(losses) / len(losses), derivative=sum(first) / len(first), clipped=found != done.derivatives,
            moved=moved[0], lr=done.rates[0], step=self.steps - 1,
        )  # fmt: skip

    def step_of(self, losses: Sequence[float]) -> tuple[tuple[float, ...], Step]:
        """Return what `apply` would make of losses, without doing it: derivatives as measured, and the step.

        Raises:
            ValueError, LossError: see `apply`. Nothing has changed.
        """
        rates, count = self._rates(), len(self.estimator.points(self.probes))
        check("losses", list(losses), len(losses) == count, f"{count} of them, one for each of plan()")
        found = measured(losses, self.estimator, rates, self.steps)
        step = made_step(found, self._run.seeds(self.seed, self.probes), rates, self.trajectory.steps)
        return tuple(derivative for group in found for derivative in group), step

    def extend(self, steps: Sequence[Step]) -> None:
        """Do steps as they are, such as those of another worker: deltas, model and trajectory follow."""
        self._run.extend(steps)

    def restore(self) -> None:
        """Write theta into the model, whatever probe it holds."""
        self._run.restore()

    def calibrate(
        self,
        closure: AnyClosure | Sequence[AnyClosure],
        *,
        choose: Sequence[str] = ("lr", "eps", "clip"),
        schedule: Sequence[float] | None = None,
        group: int = 0,
    ) -> Calibration:
        """Measure the loss around theta and set eps, lr and clip. The model stays bit for bit as it was.

        Call it before a scheduler is made, which would remember the old lr.

        Args:
            closure: returns the loss of a batch, as for `loss_at`; of several closures, one a batch, the first two are
                used, and say how much of a derivative is noise of the batch. If it draws a new batch at each call, the
                difference of two batches is noise in every derivative.
            choose: which of `"lr"`, `"eps"` and `"clip"` to set; the others are kept, and measured with.
            schedule: the learning rate of each step of the run to come, relative to the first; None stands for 1,000
                steps at a constant rate.
            group: the group whose numbers these are; the others stay at theta.

        Raises:
            LossError: the loss at theta is no finite number, or no probe has a finite loss.
            ValueError: `choose` names something else, or more than eps where directions share the examples; or there is
                no such group, closure or schedule.
        """
        batches, count = [closure] if callable(closure) else list(closure), len(self.all_views)
        check_choice(choose, self.split)
        check("group", group, 0 <= group < count, f"from 0 to {count - 1}")
        check("schedule", schedule, schedule is None or any(schedule), "None, or rates of which one is above 0")
        check("closure", batches, bool(batches), "one, or one for each of several batches")
        prober, rates, rule = self._prober, self._rates()[group], self.trajectory.groups[group].rule
        try:
            found = calibrate(Plan(
                loss=loss_along(prober, batches, self.seed, self.steps, group, count), batches=len(batches),
                moved=partial(prober.share_moved, group, step_seed(self.seed, -1)),
                unit=unit_of(self.all_views[group]), estimator=self.estimator, rule=rule, probes=self.probes,
                **rates._asdict(), choose=choose, schedule=schedule,
            ))  # fmt: skip
        finally:
            self.restore()
        self.param_groups[group].update(lr=found.lr, eps=found.eps, clip=found.clip)
        return found

    def resume(self, trajectory: Trajectory) -> None:
        """Go on from a trajectory of a run with the same settings: a copy is replayed, the next step is the next one.

        Raises:
            BaseMismatchError: the trajectory was made on another base, or on other views.
            ValueError: it has other settings; the first one is named.
        """
        check_same(self.trajectory, self.probes, trajectory)
        trajectory.check(self.all_views)
        self._run.follow(trajectory.copy())

    def state_dict(self) -> dict[str, Any]:
        """Return settings, seed and trajectory, in tens of bytes a step; what the rule remembers follows from them.

        It holds numbers, strings and tensors alone, so that `torch.load(weights_only=True)` reads it.
        """
        return state_dict(self.param_groups, self.seed, self.probes, self.split, self._moved, self.trajectory)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, replaying its trajectory.

        Raises:
            BaseMismatchError: the state belongs to another base. Nothing has changed.
            CheckpointError: the state is damaged; the part is named. Nothing has changed.
            ValueError: the state is that of another kind of run, or a rate is out of range. Nothing has changed.
        """
        state = read_state(state_dict)
        state.trajectory.check(self.all_views)
        check_subspace(self.trajectory, state.trajectory)
        self.estimator, self.seed, self.probes = state.estimator, state.seed, state.probes
        self.split, self._moved = state.split, state.moved
        for group, saved in zip(self.param_groups, state.groups, strict=True):
            group.update(saved)
        self._run.follow(state.trajectory)

    @property
    def _prober(self) -> Prober:
        """How the losses of probes are evaluated."""
        return self._run.prober(self.probes, len(self.estimator.points(self.probes)), self.split)

    def _rates(self) -> list[Rates]:
        groups = zip(self.param_groups, self.trajectory.groups, strict=True)
        return [rates_of(group, record.decay) for group, record in groups]

    def _undo(self) -> None:
        """Leave theta as it was and count a step of length 0."""
        self.restore()
        rates = tuple(float(group["lr"]) for group in self.param_groups)
        self.trajectory.steps.append(
            Step(self._run.seeds(self.seed, self.probes), (0.0,) * self.probes * len(rates), rates)
        )
