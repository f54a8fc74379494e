"""The loop of a training run. Any moment can be its last: `resume` goes on from there, to the same bytes."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from zoquant.distributed.launch import from_first, is_first, waiting
from zoquant.errors import LossError, RewardError
from zoquant.files.atomic_files import write_text
from zoquant.optim.choosing import Numbers
from zoquant.optim.measuring import StepResult
from zoquant.optim.rising import Rising
from zoquant.record.delta import save_delta
from zoquant.tasks import Evaluation
from zoquant.training.backward.beginning import by_backwards
from zoquant.training.backward.steps import BackwardSteps
from zoquant.training.best_step import BestStep, holding
from zoquant.training.job import Job
from zoquant.training.linear_probe.beginning import by_linear_probe
from zoquant.training.linear_probe.steps import LinearProbe
from zoquant.training.memory.resident import rss_bytes
from zoquant.training.micro_batches import MicroBatches
from zoquant.training.moving import Moving
from zoquant.training.outcome import Outcome
from zoquant.training.progress import OnProgress, Progress
from zoquant.training.settings import AUTO, Settings
from zoquant.training.steps import Steps
from zoquant.training.trails.states import States
from zoquant.training.trails.trajectories import Trajectories
from zoquant.views.model_views import Views

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
    found = prepared(job, resume, on_progress)
    try:
        return found.go()
    finally:
        found.close()


def prepared(job: Job, resume: bool, on_progress: OnProgress) -> "Run":
    """Return a run that is ready to begin or to go on; its folder is locked until it is closed."""
    try:
        return Run(job, on_progress, *_WAYS[job.settings.gradient](job, resume))
    except BaseException:
        job.folder.release()
        raise


def _by_forwards(job: Job, resume: bool) -> tuple[Settings, Views, Steps, Trajectories, str | None]:
    """Return what a run is made of whose steps are made of losses alone, ready to begin or to go on."""
    folder, settings = job.folder, job.settings
    begun = folder.subspace() if resume and settings.subspace == AUTO else None
    moving = Moving.choose(settings, job.model, job.train, begun)
    facts = asdict(moving.settings) | job.identity
    if not resume:
        folder.begin(facts, job.config_text(moving.settings))
    elif (trajectory := folder.resume(facts)) is not None:
        moving.optimizer.resume(trajectory)
    steps = Steps(job.model, job.train, moving, MicroBatches(folder.micro_batches))
    return moving.settings, moving.views, steps, Trajectories(folder, moving.optimizer), moving.why


_WAYS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "forward": _by_forwards, "backward": by_backwards, "linear-probe": by_linear_probe,
}  # fmt: skip


class Run:
    """A run, ready to begin or to go on. Whoever holds it closes it."""

    def __init__(
        self,
        job: Job,
        on_progress: OnProgress,
        settings: Settings,
        views: Views,
        steps: Steps | BackwardSteps | LinearProbe,
        trail: Trajectories | States,
        why: str | None = None,
    ) -> None:
        self.job, self.settings, self.views, self.why = job, settings, views, why
        self.folder, self.steps, self.trail, self.on_progress = job.folder, steps, trail, on_progress
        self.wait_for_first = waiting()
        self.rss_loaded = rss_bytes()
        self.rising = Rising(settings.steps)
        self.best_step: int | None = None
        self.better_step: int | None = None
        self.test: Evaluation | None = None
        self.changed = 0.0

    def close(self) -> None:
        """Give the folder back, and let the model ask for no gradient any more."""
        self.steps.close()
        self.folder.release()

    def go(self) -> Outcome:
        """Evaluate, train, save, evaluate."""
        finished = False
        if self.steps.done >= self.settings.steps:
            self._say(notice=f"{self.folder.path}: this run is finished, all of its {self.steps.done} steps are done.")
        for notice in self.job.notices:
            self._say(notice=notice)
        if self.why is not None and not self.settings.missing:
            self._say(notice=self.why)
        for notice in self.steps.notices:
            self._say(notice=notice)
        try:
            if self._evaluation_is_due():
                self._evaluate()
            numbers = self._numbers()
            self.wait_for_first()
            self.steps.begin(from_first(numbers))
            self._remember()
            self._train()
            if all(step < self.steps.done for step, _ in self.folder.evaluations()):
                self._evaluate()
            finished = True
        except KeyboardInterrupt:
            pass
        finally:
            self._save()
        if finished:
            self.trail.finish()
            self._test()
            self._keep_better()
        return Outcome.read(
            self.folder, self.views, self.steps.done, self.steps.forwards, finished=finished,
            changed=self.changed, rss_loaded_bytes=self.rss_loaded, best_step=self.best_step, test=self.test,
            better_step=self.better_step,
        )  # fmt: skip

    def _numbers(self) -> dict[str, Any] | None:
        """Choose the numbers that were not given, or take over those that this run has chosen before."""
        if not self.settings.missing:
            return None
        found = self.folder.read_calibration()
        if found is None and is_first():
            self._say(doing="choosing lr, eps and clip")
            numbers = self._chosen()
            found = numbers.to_dict()
            self._tell_config(found)  # first: a run that is killed in between chooses again, and alike
            self.folder.save_calibration(found)
            self._say(calibration=numbers)
        return found

    def _tell_config(self, found: dict[str, Any]) -> None:
        """Write down what the run chose, so that its config makes the same run again."""
        used = replace(self.settings, **{name: found[name] for name in self.settings.missing})
        if (text := self.job.config_text(used)) is not None:
            write_text(self.folder.config, text)

    def _chosen(self) -> Numbers:
        numbers = self.settings.by_rule() if self.settings.subspace == "rows-columns" else self.steps.measure()
        why = self.why
        return numbers if why is None else replace(numbers, reasons=(why, *numbers.reasons))

    def _remember(self) -> None:
        """Take in the losses of an earlier life of the run, which rank 0 alone has kept."""
        if self.settings.halves:
            losses = [line["loss"] for line in self.folder.read_metrics() if "loss" in line] if is_first() else []
            for loss in from_first(losses):
                self._heed(loss)

    def _heed(self, loss: float) -> str | None:
        """Lower the learning rate of the steps to come if the loss has risen, where that is wanted; return why."""
        if not self.settings.halves:
            return None
        why = self.rising.see(loss)
        self.steps.slower = self.rising.factor
        return why

    def _train(self) -> None:
        failures = 0
        self.trail.begin()
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
        self.trail.record()  # last: of a step that it does not hold, a run that goes on forgets the line
        self.on_progress(progress)
        if (why := self._heed(result.loss)) is not None:
            self._say(notice=f"step {steps}: {why}.")
        if every and steps % every == 0:
            self._evaluate()
            self.wait_for_first()

    def _skip(self, error: LossError, seconds: float) -> None:
        """Count a step that was undone."""
        self.trail.record()
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
        self._say(doing="evaluating on held-out data")
        start = time.perf_counter()
        found = self.job.held_out.evaluate(self.job.model)
        steps, before = self.steps.done, self.folder.evaluations()
        self.trail.evaluated(best=self._ranking(found).among([*before, (steps, found)]) == steps)
        self._note(evaluation=found, seconds=time.perf_counter() - start)

    def _test(self) -> None:
        """Measure the step that did best on held-out data, and leave its delta in the folder: that is the one to take.

        The model keeps the last one.
        """
        best = self.job.best.among(self.folder.evaluations())
        if self.job.test is None or best is None:
            return
        delta = self.trail.best(best)
        self._say(doing=f"testing step {best}")
        with holding(self.views, delta):
            self.test = self.job.test.evaluate(self.job.model)
            self.changed = self.views.share_changed()
        delta.save(self.folder.delta)
        self.best_step = best

    def _ranking(self, found: Evaluation) -> BestStep:
        """Return how steps are compared: as the protocol says, or by what says how good the model is."""
        return replace(self.job.best, metric=found.primary) if self.job.test is None else self.job.best

    def _keep_better(self) -> None:
        """Leave the delta of a step that was measured better than the last beside that of the last."""
        found = dict(self.folder.evaluations())
        last = found.get(self.steps.done)
        if self.job.test is not None or last is None:
            return
        ranking = self._ranking(last)
        best = ranking.among(list(found.items()))
        if best is not None and ranking.score(found[best]) > ranking.score(last):
            self.trail.best(best).save(self.folder.best)
            self.better_step = best
        else:
            self.folder.best.unlink(missing_ok=True)

    def _note(self, **what: Any) -> None:
        """Write a line of metrics, and say it."""
        progress = Progress(self.steps.done, self.settings.steps, **what)
        self.folder.append_metrics(progress)
        self.on_progress(progress)

    def _say(self, **what: Any) -> None:
        self.on_progress(Progress(self.steps.done, self.settings.steps, **what))

    def _save(self) -> None:
        self.trail.save()
        save_delta(self.folder.delta, self.views)
        self.changed = self.views.share_changed()
