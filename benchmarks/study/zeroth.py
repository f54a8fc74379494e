"""A zeroth-order run: calibrated and trained as `zoquant train` does, with dev measured at given forwards."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

import zoquant
from benchmarks.study.examples import Examples
from benchmarks.study.record import Draft, Result, TimeUpError, point
from benchmarks.study.rows import Row
from zoquant import ZOSGD, Trajectory, Trunk, Views
from zoquant.errors import LossError
from zoquant.optim.estimators import ESTIMATORS, RobustClip
from zoquant.tasks import Batch
from zoquant.training import Settings
from zoquant.training.moving import Moving

BATCH = 16
"""Examples of one forward."""
CALIBRATION = 83
"""The most forwards that `ZOSGD.calibrate` takes."""
MARKS = (
    *(125, 250, 375, 500, 750, 1000, 1250, 1500, 1750, 2000, 2500, 3000, 4000, 5000, 6000, 7000, 8000),
    *range(9000, 100_001, 1000),
)
"""Forwards after which dev is measured."""
NUMBERS = ("lr", "eps", "clip")

_CALIBRATION_BATCHES = 2
_LIFELESS = 10
_SAVE_EVERY = 25


@dataclass(frozen=True)
class Course:
    """How a run is laid out.

    Attributes:
        settings: of the run; `steps` fills the forwards that calibration leaves.
        a_step: forwards of a step.
        marks: after how many steps dev is measured, the start and the end among them.
    """

    settings: Settings
    a_step: float
    marks: frozenset[int]


def course(row: Row, seed: int, numbers: Result) -> Course:
    """Lay a run out.

    Args:
        row: the line.
        seed: of the run.
        numbers: lr and eps where the row takes them from the grid, else nothing.

    Raises:
        ValueError: the forwards do not suffice for a step.
    """
    names = {each.name for each in fields(Settings)}
    given = {name: value for name, value in row.settings.items() if name in names} | numbers
    if "directions" in row.settings:
        given["probes"] = row.settings["directions"]
    draft = Settings(steps=1, seed=seed, **given)
    share = draft.batch_size / BATCH
    points = len(ESTIMATORS[draft.estimator]().points(row.settings.get("directions", draft.probes)))
    a_step = share * (points // row.settings["directions"] if row.settings.get("split") else points)
    before = CALIBRATION * share if draft.missing and row.method != "default" else 0
    steps = int((row.forwards - before) // a_step)
    if steps < 1:
        raise ValueError(f"{row.name}: {row.forwards} forwards leave no step, expected at least {before + a_step:g}.")
    marks = {0, steps} | {step for mark in MARKS if (step := -int((before - mark) // a_step)) in range(1, steps)}
    return Course(Settings(steps=steps, seed=seed, **given), a_step, frozenset(marks))


class ZerothOrder:
    """A run under way, which goes on from its draft.

    Args:
        row: the line.
        model: at its base values; they are back when the run ends.
        data: the examples.
        plan: how the run is laid out.
        draft: what is kept of it.
        check: called before every step; raises TimeUpError to end the slice.
    """

    def __init__(
        self, row: Row, model: nn.Module, data: Examples, plan: Course, draft: Draft, check: Callable[[], None]
    ) -> None:
        self.row, self.model, self.data, self.plan, self.draft, self.check = row, model, data, plan, draft, check
        self.settings, self.views = _chosen(row, plan.settings, model, data)
        self.state: Result = {"curve": [], "seconds": 0.0, "calibration": None, **draft.read()}
        self.opt = optimizer(row, self.settings, self.views)
        self.trunk = Trunk(model, self.views)

    def run(self) -> Result:
        """Calibrate, train, and evaluate on all of dev and on test.

        Raises:
            TimeUpError: the slice is over; the draft has everything.
        """
        try:
            self._calibrate()
            if self.draft.journal.exists():
                self.opt.resume(Trajectory.load(self.draft.journal))
            self._try_trunk()
            self._train()
            done = self._forwards()
            ends = {part: point(done, getattr(self.data, part).evaluate(self.model)) for part in ("dev", "test")}
            return {"forwards": done, **self.state, **ends, "steps": self.opt.steps, "lifeless": self._is_lifeless()}
        finally:
            self.views.reset()

    def _calibrate(self) -> None:
        """Choose the numbers that are missing, or take over those that this run has chosen before."""
        settings, group = self.settings, self.opt.param_groups[0]
        missing = () if settings.subspace == "rows-columns" else settings.missing
        if missing and self.state["calibration"] is None:
            self.check()
            start = time.perf_counter()
            batches = [self._batch(step) for step in range(_CALIBRATION_BATCHES)]
            rates = [settings.rate_at(step) for step in range(settings.steps)]
            found = self.opt.calibrate([self._closure(batch) for batch in batches], choose=missing, schedule=rates)
            self.state["seconds"] += time.perf_counter() - start
            self.state["calibration"] = found.to_dict()
        for name in missing:
            group[name] = self.state["calibration"][name]
        self.state["numbers"] = {name: str(v) if isinstance(v := group[name], RobustClip) else v for name in NUMBERS}
        self.draft.write(self.state)
        self.lr = float(group["lr"])

    def _train(self) -> None:
        settings = self.plan.settings
        with self.opt.trajectory.journal(self.draft.journal, self.opt.probes) as journal:
            try:
                while True:
                    self._measure()
                    if self.opt.steps == settings.steps or self._is_lifeless():
                        return
                    self.check()
                    start = time.perf_counter()
                    self._step()
                    journal.append(self.opt.trajectory.steps[-1])
                    self.state["seconds"] += time.perf_counter() - start
                    if self.opt.steps % _SAVE_EVERY == 0:
                        self.draft.write(self.state)
            except TimeUpError:
                self.draft.write(self.state)
                raise

    def _try_trunk(self) -> None:
        """Show the trunk a forward, so that steps are computed alike wherever the run goes on."""
        batch = self.data.train.batch_of_step(self.plan.settings.seed, 0, 1)
        with self.trunk.shared(), torch.no_grad():
            self.data.train.losses(self.model, batch)

    def _step(self) -> None:
        """Do one step. One whose loss is not finite is undone and counts as one of length 0."""
        self.opt.param_groups[0]["lr"] = self.lr * self.plan.settings.rate_at(self.opt.steps)
        try:
            with self.trunk.shared(self.opt.repeat):
                self.opt.step(self._closure(self._batch(self.opt.steps)))
        except LossError as error:
            print(f"{self.row.name}: {error}", flush=True)

    def _measure(self) -> None:
        """Evaluate at a mark, unless that was done before the run was interrupted."""
        known = [each["step"] for each in self.state["curve"]]
        if self.opt.steps in self.plan.marks - set(known):
            found = {"step": self.opt.steps, **point(self._forwards(), self.data.choice.evaluate(self.model))}
            self.state["curve"].append(found)
            self.draft.write(self.state)
            print(f"{self.row.name}, seed {self.plan.settings.seed}: {found}", flush=True)

    def _is_lifeless(self) -> bool:
        """Whether the last steps all moved nothing: losses that are not finite, or that do not change."""
        last = self.opt.trajectory.steps[-_LIFELESS:]
        return len(last) == _LIFELESS and not any(any(step.derivatives) for step in last)

    def _forwards(self) -> float:
        """Return the forwards so far; those of a calibration are spent before the first step."""
        spent = 0 if self.state["calibration"] is None or not self.opt.steps else self.state["calibration"]["forwards"]
        return float(spent * self.plan.settings.batch_size / BATCH + self.opt.steps * self.plan.a_step)

    def _batch(self, step: int) -> Batch:
        settings = self.plan.settings
        return self.data.train.batch_of_step(settings.seed, step, settings.batch_size)

    def _closure(self, batch: Batch) -> Callable[..., Any]:
        train = self.data.train
        if self.opt.together:
            return lambda repeat: train.losses(self.model, batch.repeat(repeat))
        return lambda: float(train.loss(self.model, batch))


def _chosen(row: Row, settings: Settings, model: nn.Module, data: Examples) -> tuple[Settings, Views]:
    """Return what a run moves: what `zoquant train` chooses, or for a row with settings of its own what they say.

    Raises:
        ValueError: the model is one whose rows and columns cannot move, so the default is not what was planned for.
    """
    if row.method != "default":
        return settings, views_of(model, settings)
    moving = Moving.choose(settings, model, data.train)
    if moving.settings.subspace != "rows-columns":
        raise ValueError(f"{row.name}: {moving.why} Expected rows-columns, which its forwards are counted for.")
    return moving.settings, moving.views


def views_of(model: nn.Module, settings: Settings) -> Views:
    """Return the views that a run moves; plain weights are streamed."""
    return zoquant.attach(
        model, roles=settings.roles, include=settings.include, exclude=settings.exclude, coupled=settings.coupled,
        streamed="dense" in settings.roles,
    )  # fmt: skip


def optimizer(row: Row, settings: Settings, views: Views) -> ZOSGD:
    """Return the optimizer of a row; numbers that are missing stand at its defaults."""
    if row.method != "batched":
        return settings.optimizer(views)
    numbers = {name: value for name in ("lr", "eps") if (value := getattr(settings, name)) is not None}
    return ZOSGD(
        views, subspace="rows-columns", probes=row.settings["directions"], split=row.settings["split"],
        seed=settings.seed,
        noise=settings.noise, estimator=ESTIMATORS[settings.estimator](), rule=settings.update(), **numbers,
    )  # fmt: skip


def center(model: nn.Module, data: Examples, row: Row, steps: int) -> Result:
    """Return what a calibration finds for the settings of QZO: the middle of its grid. The model stays as it was.

    Eps: of 0.1 % to 30 % of the median scale the one nearest to 3 % among those with little rounding noise and
    curvature. Lr: the steps of a run at constant lr add up to a random walk of 15 % of the median scale.
    """
    settings = Settings(steps=steps, **row.settings)
    opt = settings.optimizer(views_of(model, settings))
    batches = [data.train.batch_of_step(settings.seed, step, BATCH) for step in range(_CALIBRATION_BATCHES)]
    closures: Sequence[Callable[[], float]] = [
        lambda batch=batch: float(data.train.loss(model, batch))  # type: ignore[misc]
        for batch in batches
    ]
    rates = [settings.rate_at(step) for step in range(steps)]
    return opt.calibrate(closures, choose=settings.missing, schedule=rates).to_dict()
