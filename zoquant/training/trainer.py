"""The loop of a training run. Any moment can be its last: `resume` goes on from there, to the same bytes."""

import time
from dataclasses import asdict, replace
from typing import Any

from zoquant.distributed.launch import from_first, is_first
from zoquant.errors import LossError, RewardError
from zoquant.optim.choosing import Numbers
from zoquant.optim.measuring import StepResult
from zoquant.record.delta import save_delta
from zoquant.record.journal import Journal
from zoquant.tasks import Evaluation
from zoquant.training.best_step import holding
from zoquant.training.job import Job
from zoquant.training.micro_batches import MicroBatches
from zoquant.training.moving import Moving
from zoquant.training.outcome import Outcome
from zoquant.training.progress import OnProgress, Progress
from zoquant.training.resident_memory import rss_bytes
from zoquant.training.settings import AUTO
from zoquant.training.steps import Steps

_LOSSES_IN_A_ROW = 3
_LOWER = "begin a new one with half the lr, or with clip set"


def run(job: Job, *, resume: bool = False, on_progress: OnProgress = lambda _: None) -> Outcome:
    """Train.

    Args:
        job: what to do.
        resume: go on in a folder that holds an unfinished run; the end is byte for byte that of a run never stopped.
        on_progress: called after each step and each evaluation.

    Returns:
        What came of it. After Ctrl-C everything is saved and `finished` is False.

    Raises:
        OutputExistsError, CheckpointError, FolderInUseError: the folder cannot be used.
        DoesNotFitError: one example alone needs more memory than there is; the run so far is saved.
        LossError: the loss was not finite several times in a row; the run so far is saved.
    """
    folder, settings = job.folder, job.settings
    begun = folder.subspace() if resume and settings.subspace == AUTO else None
    moving = Moving.choose(settings, job.model, job.train, begun)
    facts = asdict(moving.settings) | job.identity
    try:
        if not resume:
            folder.begin(facts, job.config)
        elif (trajectory := folder.resume(facts)) is not None:
            moving.optimizer.resume(trajectory)
        steps = Steps(job.model, job.train, moving, MicroBatches(folder.micro_batches))
        return _Run(job, moving, steps, on_progress).go()
    finally:
        folder.release()


class _Run:
    """A run under way."""

    def __init__(self, job: Job, moving: Moving, steps: Steps, on_progress: OnProgress) -> None:
        self.job, self.moving, self.steps, self.on_progress = job, moving, steps, on_progress
        self.folder, self.settings, self.optimizer = job.folder, moving.settings, steps.optimizer
        self.journal: Journal | None = None
        self.rss_loaded = rss_bytes()
        self.best_step: int | None = None
        self.test: Evaluation | None = None
        self.changed = 0.0

    def go(self) -> Outcome:
        """Evaluate, train, save, evaluate."""
        finished = False
        if self.job.notice is not None:
            self._say(notice=self.job.notice)
        if self.moving.why is not None and not self.settings.missing:
            self._say(notice=self.moving.why)
        if self.steps.shared is not None:
            self._say(notice=self.steps.shared)
        try:
            if self._evaluation_is_due():
                self._evaluate()
            self.steps.begin(self._numbers())
            self._train()
            if all(step < self.steps.done for step, _ in self.folder.evaluations()):
                self._evaluate()
            finished = True
        except KeyboardInterrupt:
            pass
        finally:
            self._save()
        if finished:
            self.folder.journal.unlink(missing_ok=True)
            self._test()
        return Outcome.read(
            self.folder, self.moving.views, self.steps.done, self.steps.forwards, finished=finished,
            changed=self.changed, rss_loaded_bytes=self.rss_loaded, best_step=self.best_step, test=self.test,
        )  # fmt: skip

    def _numbers(self) -> dict[str, Any] | None:
        """Choose the numbers that were not given, or take over those that this run has chosen before."""
        if not self.settings.missing:
            return None
        found = self.folder.read_calibration()
        if found is None and is_first():
            numbers = self._chosen()
            found = numbers.to_dict()
            self.folder.save_calibration(found)
            self._say(calibration=numbers)
        shared: dict[str, Any] = from_first(found)
        return shared

    def _chosen(self) -> Numbers:
        numbers = self.settings.by_rule() if self.settings.subspace == "rows-columns" else self.steps.measure()
        why = self.moving.why
        return numbers if why is None else replace(numbers, reasons=(why, *numbers.reasons))

    def _train(self) -> None:
        failures = 0
        self.journal = self.optimizer.trajectory.journal(self.folder.journal, self.optimizer.probes)
        while self.steps.done < self.settings.steps:
            start = time.perf_counter()
            try:
                result = self.steps.step()
            except LossError as error:
                self._skip(error, time.perf_counter() - start)
                failures += 1
                if failures == _LOSSES_IN_A_ROW:
                    raise self._hopeless(error) from error
                continue
            failures = 0
            self._after_step(result, time.perf_counter() - start)
        self.steps.check()

    def _after_step(self, result: StepResult, seconds: float) -> None:
        steps, every = self.steps.done, self.job.eval_every
        forward_seconds, overhead = self.steps.watch.step(seconds, self.steps.forwards)
        progress = Progress(
            steps, self.settings.steps, result, seconds=seconds, forward_seconds=forward_seconds, overhead=overhead
        )
        self.folder.append_metrics(progress)
        self._record()  # last: of a step that the journal does not hold, a run that goes on forgets the line
        self.on_progress(progress)
        if every and steps % every == 0:
            self._evaluate()

    def _skip(self, error: LossError, seconds: float) -> None:
        """Count a step that was undone."""
        self._record()
        self.steps.watch.discard()
        self._note(skipped=str(error), seconds=seconds)

    def _hopeless(self, error: LossError) -> LossError:
        advice = "see to the reward, and go on with --resume" if isinstance(error, RewardError) else _LOWER
        return type(error)(
            f"{error} This happened {_LOSSES_IN_A_ROW} times in a row. The run so far is saved in "
            f"{self.folder.path}; {advice}."
        )

    def _evaluation_is_due(self) -> bool:
        """Whether the run begins, or a kill took the evaluation that its last step called for."""
        done, every = [step for step, _ in self.folder.evaluations()], self.job.eval_every
        steps = self.steps.done
        return not done or (every > 0 and steps > 0 and steps % every == 0 and steps not in done)

    def _evaluate(self) -> None:
        if self.job.held_out is None:
            return
        start = time.perf_counter()
        found = self.job.held_out.evaluate(self.job.model)
        self._note(evaluation=found, seconds=time.perf_counter() - start)

    def _test(self) -> None:
        """Measure the step that did best on held-out data, and leave its delta in the folder: that is the one to take.

        The model keeps the last one.
        """
        best = self.job.best.among(self.folder.evaluations())
        if self.job.test is None or best is None:
            return
        views = self.moving.views
        delta = self.optimizer.trajectory.prefix(best).delta(views)
        with holding(views, delta):
            self.test = self.job.test.evaluate(self.job.model)
            self.changed = views.share_changed()
        delta.save(self.folder.delta)
        self.best_step = best

    def _note(self, **what: Any) -> None:
        """Write a line of metrics, and say it."""
        progress = Progress(self.steps.done, self.settings.steps, **what)
        self.folder.append_metrics(progress)
        self.on_progress(progress)

    def _say(self, **what: Any) -> None:
        self.on_progress(Progress(self.steps.done, self.settings.steps, **what))

    def _record(self) -> None:
        """Append what the journal does not hold yet."""
        if self.journal is not None:
            for step in self.optimizer.trajectory.steps[self.journal.count :]:
                self.journal.append(step)

    def _save(self) -> None:
        self._record()
        if self.journal is not None:
            self.journal.close()
        self.optimizer.trajectory.save(self.folder.trajectory)
        save_delta(self.folder.delta, self.moving.views)
        self.changed = self.moving.views.share_changed()
