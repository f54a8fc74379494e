"""A run that begins along the gradient of the loss and ends by forwards alone, on what has no gradient.

The forwards are a run of their own, in a folder within that of the first: its base is the model that the first left.
In the end the first folder holds the delta of both, and the metrics of both.
"""

from dataclasses import replace

import torch

from zoquant.files.json_lines import append_line, read_lines
from zoquant.record.delta import Delta, read_delta
from zoquant.training.job import Job
from zoquant.training.memory.resident import peak_rss_bytes
from zoquant.training.outcome import Outcome
from zoquant.training.progress import OnProgress, Progress
from zoquant.training.run_folder import RunFolder
from zoquant.training.trainer import prepared
from zoquant.views.model_views import Views


def run_both(first: Job, then: Job, *, resume: bool, on_progress: OnProgress) -> Outcome:
    """Do two runs, one after the other.

    Args:
        first: the run by backwards.
        then: the run by forwards, on the same model; a folder that holds it already is gone on with.
        resume: go on with the first, or with the second where the first is finished.
        on_progress: called after each step and each evaluation; steps count on from the first run to the second.

    Returns:
        What came of both. `finished` is False after Ctrl-C, whichever was under way.

    Raises:
        ZoquantError: see `zoquant.training.trainer.run`.
    """
    run = prepared(first, resume, on_progress)
    try:
        begun = run.go()
        views, start = run.views, Delta.of(run.views)
    finally:
        run.close()
    if not begun.finished:
        return begun
    del run  # and with it what its rule remembers
    follow = _counting_on(on_progress, begun.steps, begun.steps + then.settings.steps)
    run = prepared(then, then.folder.settings.exists(), follow)
    try:
        ended = run.go()
    finally:
        run.close()
    del run
    joined(start, read_delta(then.folder.delta)).put(views)
    first.folder.best.unlink(missing_ok=True)
    if then.folder.best.exists():
        joined(start, read_delta(then.folder.best)).save(first.folder.best)
    _append(first.folder, then.folder, begun.steps)
    Delta.of(views).save(first.folder.delta)
    return _outcome(begun, ended, views, first, then)


def _append(folder: RunFolder, followed: RunFolder, done: int) -> None:
    """Let metrics and samples of another run follow those of the first `done` steps."""
    folder.forget_after(done)
    for own, other in ((folder.metrics, followed.metrics), (folder.samples, followed.samples)):
        for line in read_lines(other):
            if line["step"] > 0:
                append_line(own, {**line, "step": done + line["step"]})


def _outcome(begun: Outcome, ended: Outcome, views: Views, first: Job, then: Job) -> Outcome:
    """Return what came of both runs, measured once more: the delta of both rounds some values otherwise."""
    return replace(
        ended,
        views=len(views),
        trainable=views.trainable,
        changed=views.share_changed(),
        steps=begun.steps + ended.steps,
        skipped=begun.skipped + ended.skipped,
        before=begun.before,
        after=None if ended.after is None or then.held_out is None else then.held_out.evaluate(first.model),
        best_step=None if ended.best_step is None else begun.steps + ended.best_step,
        test=None if ended.test is None or then.test is None else then.test.evaluate(first.model),
        better_step=None if ended.better_step is None else begun.steps + ended.better_step,
        rss_loaded_bytes=begun.rss_loaded_bytes,
        rss_peak_bytes=peak_rss_bytes(),
        delta_bytes=first.folder.delta.stat().st_size,
    )


def joined(first: Delta, then: Delta) -> Delta:
    """Return the delta of two runs, the second of which began on what the first left.

    In relative space 1 + delta = (1 + d₁)(1 + d₂), in absolute space delta = d₁ + d₂; rounded once to float32. A value
    that d₁ takes to zero or beyond stays there, as it does in the model.
    """
    values = {}
    for key, before in first.values.items():
        after = then.values.get(key, torch.zeros(())).double()
        added = before.double() + after
        values[key] = (added + before.double() * after if first.space == "relative" else added).float()
        if first.space == "relative":
            values[key] = torch.where(before <= -1, before, values[key])
    return Delta(values, first.base, first.space)


def _counting_on(on_progress: OnProgress, before: int, steps: int) -> OnProgress:
    def told(progress: Progress) -> None:
        on_progress(progress.counted_on(before, steps))

    return told
