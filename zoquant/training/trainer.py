"""The loop of a training run. Any moment can be its last: `resume` goes on from there, to the same bytes."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from zoquant.distributed import DistributedZO
from zoquant.distributed.launch import from_first, is_first, stepper
from zoquant.errors import LossError, RewardError
from zoquant.optim.batched import BatchedZO
from zoquant.optim.calibration import Numbers
from zoquant.optim.closures import Closure, RowLosses, mean_loss
from zoquant.optim.optimizer import StepResult
from zoquant.optim.trunk import Trunk
from zoquant.record.delta import save_delta
from zoquant.record.journal import Journal
from zoquant.tasks import Evaluation, PerExample, Task
from zoquant.training.automatic import Resolved, resolve
from zoquant.training.best import CAUSAL, Choice, holding
from zoquant.training.micro_batches import MicroBatches
from zoquant.training.resident_memory import peak_rss_bytes, rss_bytes
from zoquant.training.run_folder import Progress, RunFolder
from zoquant.training.settings import AUTO, Settings
from zoquant.training.stopwatch import Stopwatch

_LOSSES_IN_A_ROW = 3
_CALIBRATION_BATCHES = 2
_LOWER = "begin a new one with half the lr, or with clip set"

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        steps: steps done.
        skipped: steps among them whose loss was no finite number, which were undone.
        finished: False when it was interrupted.
        before: evaluation before training, None without evaluation data.
        after: evaluation after training.
        best_step: number of steps after which `test` was measured; None where nothing was tested.
        test: evaluation on the data to test on, of the step that did best on held-out data.
        step_seconds: median time of a step, over all lives of the run; this and the next two are None before the first.
        forward_seconds: median over the steps of the mean time of a forward of the batch.
        overhead: median over the steps of step time ÷ time of its forwards.
        views: number of views.
        trainable: number of values that moved.
        rss_loaded_bytes: resident memory before the first forward.
        rss_peak_bytes: largest resident memory of the process so far.
        delta_bytes: size of the delta file.
        trajectory_bytes: size of the trajectory file.
    """

    steps: int
    skipped: int
    finished: bool
    before: Evaluation | None
    after: Evaluation | None
    best_step: int | None
    test: Evaluation | None
    step_seconds: float | None
    forward_seconds: float | None
    overhead: float | None
    views: int
    trainable: int
    rss_loaded_bytes: int
    rss_peak_bytes: int
    delta_bytes: int
    trajectory_bytes: int


@dataclass(frozen=True)
class Job:
    """A run to do: what, on what, where to.

    Attributes:
        model: a model in the mode that training uses.
        train: the examples to learn from.
        held_out: the examples to evaluate on, or None.
        settings: what decides the bytes.
        folder: where the files go.
        identity: further facts that must be the same to resume, such as model and data.
        eval_every: steps between evaluations; 0 evaluates at the start and the end only.
        config: text of the folder's config file, or None.
        test: the examples to measure the best step on, or None.
        choice: how that step is chosen among the evaluations.
    """

    model: nn.Module
    train: Task[Any]
    held_out: Task[Any] | None
    settings: Settings
    folder: RunFolder
    identity: dict[str, Any]
    eval_every: int = 0
    config: str | None = None
    test: Task[Any] | None = None
    choice: Choice = CAUSAL


def run(job: Job, *, resume: bool = False, report: Report = lambda _: None) -> Outcome:
    """Train.

    Args:
        job: what to do.
        resume: go on in a folder that holds an unfinished run; the end is byte for byte that of a run never stopped.
        report: called after each step and each evaluation.

    Returns:
        What came of it. After Ctrl-C everything is saved and `finished` is False.

    Raises:
        OutputExistsError, CheckpointError, FolderInUseError: the folder cannot be used.
        DoesNotFitError: one example alone needs more memory than there is; the run so far is saved.
        LossError: the loss was not finite several times in a row; the run so far is saved.
    """
    try:
        return _Run(job, resume, report).go()
    finally:
        job.folder.release()


def _resolved(job: Job, resume: bool) -> Resolved:
    """Return what the run moves: what it would choose, or where it has begun with something else, that."""
    resolved = resolve(job.settings, job.model, job.train)
    if not resume or job.settings.subspace != AUTO or resolved.settings.subspace == (begun := job.folder.subspace()):
        return resolved
    return resolve(replace(job.settings, subspace=begun), job.model, job.train)


class _Run:
    """A run under way."""

    def __init__(self, job: Job, resume: bool, report: Report) -> None:
        resolved = _resolved(job, resume)
        chosen = resolved.settings
        self.job = replace(job, settings=chosen)
        self.report = report
        self.why = resolved.why
        self.watch = Stopwatch()
        self.views = resolved.views
        self.optimizer = chosen.optimizer(self.views)
        settings = {field.name: getattr(chosen, field.name) for field in fields(Settings)} | job.identity
        if not resume:
            job.folder.begin(settings, job.config)
        elif (trajectory := job.folder.resume(settings)) is not None:
            self.optimizer.resume(trajectory)
        self.micro_batches = MicroBatches(job.folder.micro_batches)
        self.stepper = stepper(self.optimizer)
        self.trunk = Trunk(job.model, self.views)
        self.journal: Journal | None = None
        self.rss_loaded = rss_bytes()
        self.best_step: int | None = None
        self.test: Evaluation | None = None

    def go(self) -> Outcome:
        """Evaluate, train, save, evaluate."""
        finished = False
        if self.why is not None and not self.job.settings.missing:
            self._notice(self.why)
        if isinstance(self.stepper, DistributedZO):
            self._notice(self.stepper.told(self.job.settings.micro_batches))
        try:
            if self._evaluation_is_due():
                self._evaluate()
            self._calibrate()
            self._train()
            if all(step < self.optimizer.steps for step, _ in self.job.folder.evaluations()):
                self._evaluate()
            finished = True
        except KeyboardInterrupt:
            pass
        finally:
            self._save()
        if finished:
            self.job.folder.journal.unlink(missing_ok=True)
            self._test()
        return self._outcome(finished)

    def _notice(self, text: str) -> None:
        self.report(Progress(self.optimizer.steps, self.job.settings.steps, None, None, 0.0, 0.0, notice=text))

    def _evaluation_is_due(self) -> bool:
        """Whether the run begins, or a kill took the evaluation that its last step called for."""
        done, every = [step for step, _ in self.job.folder.evaluations()], self.job.eval_every
        steps = self.optimizer.steps
        return not done or (every > 0 and steps > 0 and steps % every == 0 and steps not in done)

    def _calibrate(self) -> None:
        """Choose the numbers that were not given, or take over those that this run has chosen before."""
        job, chosen = self.job, self.job.settings
        if not chosen.missing:
            return
        found = job.folder.read_calibration()
        if found is None and is_first():
            numbers = chosen.by_rule() if chosen.subspace == "rows-columns" else self._measure()
            if self.why is not None:
                numbers = replace(numbers, reasons=(self.why, *numbers.reasons))
            found = numbers.to_dict()
            job.folder.save_calibration(found)
            self.report(Progress(self.optimizer.steps, chosen.steps, None, None, 0.0, 0.0, numbers))
        shared = from_first(found)
        self.optimizer.param_groups[0].update({name: shared[name] for name in ("lr", "eps", "clip")})

    def _measure(self) -> Numbers:
        """Return what probes of the first batches say of the numbers that were not given."""
        train, chosen = self.job.train, self.job.settings
        batches = [train.batch_of_step(chosen.seed, step, chosen.batch_size) for step in range(_CALIBRATION_BATCHES)]
        micro_batches = [part for batch in batches for part in _cut(batch, chosen.micro_batches)]
        rates = [chosen.rate_at(step) for step in range(chosen.steps)]

        def calibrate(cut: list[list[Any]]) -> Numbers:
            each = chosen.micro_batches
            losses = [self._mean(cut[start : start + each]) for start in range(0, len(cut), each)]
            return self.optimizer.calibrate(losses, choose=chosen.missing, schedule=rates)

        with self.trunk.shared():
            return self.micro_batches.fit(0, micro_batches, calibrate)

    def _train(self) -> None:
        failures = 0
        self.lr = float(self.optimizer.param_groups[0]["lr"])
        self.micro_batches.agree()
        self._try_trunk()
        self.journal = self.optimizer.trajectory.journal(self.job.folder.journal, self.optimizer.probes)
        while self.optimizer.steps < self.job.settings.steps:
            start = time.perf_counter()
            try:
                result = self._step()
                failures = 0
            except LossError as error:
                self._record()
                self.watch.discard()
                self._skip(str(error), time.perf_counter() - start)
                failures += 1
                if failures == _LOSSES_IN_A_ROW:
                    advice = "see to the reward, and go on with --resume" if isinstance(error, RewardError) else _LOWER
                    raise type(error)(
                        f"{error} This happened {failures} times in a row. The run so far is saved in "
                        f"{self.job.folder.path}; {advice}."
                    ) from error
                continue
            self._after_step(result, time.perf_counter() - start)
        if isinstance(self.stepper, DistributedZO):
            self.stepper.check()

    def _step(self) -> StepResult:
        job, step = self.job, self.optimizer.steps
        self.optimizer.param_groups[0]["lr"] = self.lr * job.settings.rate_at(step)
        chosen = job.settings
        batches = _cut(job.train.batch_of_step(chosen.seed, step, chosen.batch_size), chosen.micro_batches)
        return self.micro_batches.fit(step, batches, self._attempt)

    def _try_trunk(self) -> None:
        """Show the trunk a forward, so that every step of rows and columns is computed alike, the first one too."""
        if isinstance(self.optimizer, BatchedZO):
            batch = self.job.train.batch_of_step(self.job.settings.seed, 0, 1)
            with self.trunk.shared(), torch.no_grad():
                cast(PerExample[Any], self.job.train).losses(self.job.model, batch)

    def _losses(self, part: Any) -> RowLosses:
        """Return what evaluates the losses of the examples of a part of a batch, as often as it is told."""
        model, train = self.job.model, cast(PerExample[Any], self.job.train)
        return lambda repeat: self.watch.forward(lambda: train.losses(model, part.repeat(repeat)))

    def _attempt(self, cut: list[list[Any]]) -> StepResult:
        """Do a step whose micro-batches are cut into these parts."""
        self.watch.discard()
        parts = [part for batch in cut for part in batch]
        if isinstance(self.optimizer, BatchedZO):
            with self.trunk.shared(self.optimizer.repeat):
                return self.optimizer.step([self._losses(part) for part in parts], [part.weight for part in parts])
        closures = [partial(self.watch.forward, partial(self._loss, part)) for part in parts]
        weights = None if len(parts) == 1 else [part.weight for part in parts]
        with self.trunk.shared():
            return self.stepper.step(closures, weights)

    def _mean(self, cut: list[list[Any]]) -> Closure:
        """Return what evaluates the loss of a batch whose micro-batches are cut into these parts."""
        parts = [part for micro_batch in cut for part in micro_batch]
        closures = [partial(self._loss, part) for part in parts]
        return closures[0] if len(parts) == 1 else mean_loss(closures, [part.weight for part in parts])

    def _loss(self, batch: Any) -> float:
        return float(self.job.train.loss(self.job.model, batch))

    def _after_step(self, result: StepResult, seconds: float) -> None:
        job, steps = self.job, self.optimizer.steps
        forward_seconds, overhead = self.watch.step(seconds, self._forwards)
        progress = Progress(steps, job.settings.steps, result, None, seconds, forward_seconds, overhead=overhead)
        job.folder.append_metrics(progress)
        self._record()  # last: of a step that the journal does not hold, a run that goes on forgets the line
        self.report(progress)
        if job.eval_every and steps % job.eval_every == 0:
            self._evaluate()

    @property
    def _forwards(self) -> int:
        """How many forwards of the batch a step takes."""
        optimizer = self.optimizer
        return optimizer.repeat if isinstance(optimizer, BatchedZO) else len(optimizer.plan())

    def _skip(self, why: str, seconds: float) -> None:
        """Count a step that was undone."""
        self._tell(Progress(self.optimizer.steps, self.job.settings.steps, None, None, seconds, 0.0, skipped=why))

    def _evaluate(self) -> None:
        if self.job.held_out is None:
            return
        start = time.perf_counter()
        found = self.job.held_out.evaluate(self.job.model)
        seconds = time.perf_counter() - start
        self._tell(Progress(self.optimizer.steps, self.job.settings.steps, None, found, seconds, 0.0))

    def _test(self) -> None:
        """Save the delta of the step that did best on held-out data, and measure it. The model keeps the last one."""
        best = self.job.choice.best(self.job.folder.evaluations())
        if self.job.test is None or best is None:
            return
        delta = self.optimizer.trajectory.prefix(best).delta(self.views)
        delta.save(self.job.folder.best)
        with holding(self.views, delta):
            self.test = self.job.test.evaluate(self.job.model)
        self.best_step = best

    def _tell(self, progress: Progress) -> None:
        self.job.folder.append_metrics(progress)
        self.report(progress)

    def _record(self) -> None:
        """Append what the journal does not hold yet."""
        if self.journal is not None:
            for step in self.optimizer.trajectory.steps[self.journal.count :]:
                self.journal.append(step)

    def _save(self) -> None:
        self._record()
        if self.journal is not None:
            self.journal.close()
        self.optimizer.trajectory.save(self.job.folder.trajectory)
        save_delta(self.job.folder.delta, self.views)

    def _outcome(self, finished: bool) -> Outcome:
        folder = self.job.folder
        evaluations = [evaluation for _, evaluation in folder.evaluations()]
        lines = folder.read_metrics()
        steps = [line for line in lines if "loss" in line and line["overhead"]]
        return Outcome(
            steps=self.optimizer.steps,
            skipped=sum("skipped" in line for line in lines),
            finished=finished,
            before=evaluations[0] if evaluations else None,
            after=evaluations[-1] if len(evaluations) > 1 else None,
            best_step=self.best_step,
            test=self.test,
            step_seconds=_median([line["seconds"] for line in steps]),
            forward_seconds=_median([line["seconds"] / line["overhead"] / self._forwards for line in steps]),
            overhead=_median([line["overhead"] for line in steps]),
            views=len(self.views),
            trainable=self.views.trainable,
            rss_loaded_bytes=self.rss_loaded,
            rss_peak_bytes=peak_rss_bytes(),
            delta_bytes=folder.delta.stat().st_size,
            trajectory_bytes=folder.trajectory.stat().st_size,
        )


def _cut(batch: Any, count: int) -> list[Any]:
    """Return a batch of a task in so many parts, a power of two."""
    return [batch] if count == 1 else [part for half in batch.halves() for part in _cut(half, count // 2)]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
