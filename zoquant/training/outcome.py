"""What a run came to."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoquant.tasks import Evaluation
from zoquant.training.resident_memory import peak_rss_bytes
from zoquant.training.run_folder import RunFolder
from zoquant.views.model_views import Views


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        finished: False when it was interrupted.
        views: number of views.
        trainable: number of values that moved.
        steps: steps done.
        skipped: steps among them whose loss was no finite number, which were undone.
        before: evaluation before training, None without evaluation data.
        after: evaluation after training.
        best_step: number of steps after which `test` was measured; None where nothing was tested.
        test: evaluation on the data to test on, of the step that did best on held-out data.
        step_seconds: median time of a step, over all lives of the run; this and the next two are None before the first.
        forward_seconds: median over the steps of the mean time of a forward of the batch.
        overhead: median over the steps of step time ÷ time of its forwards.
        rss_loaded_bytes: resident memory before the first forward.
        rss_peak_bytes: largest resident memory of the process so far.
        delta_bytes: size of the delta file.
        trajectory_bytes: size of the trajectory file; 0 of a run by backwards, which has none.
    """

    finished: bool
    views: int
    trainable: int
    steps: int
    skipped: int
    before: Evaluation | None
    after: Evaluation | None
    best_step: int | None
    test: Evaluation | None
    step_seconds: float | None
    forward_seconds: float | None
    overhead: float | None
    rss_loaded_bytes: int
    rss_peak_bytes: int
    delta_bytes: int
    trajectory_bytes: int

    @classmethod
    def read(
        cls, folder: RunFolder, views: Views, steps: int, forwards: int, *, finished: bool, rss_loaded_bytes: int,
        best_step: int | None, test: Evaluation | None,
    ) -> "Outcome":  # fmt: skip
        """Return what the folder of a run says of it.

        Args:
            folder: the folder, after everything was saved.
            views: what moved.
            steps: steps done.
            forwards: forwards of the batch that a step takes.
            finished: whether the run came to its end.
            rss_loaded_bytes: resident memory before the first forward.
            best_step: the step that was tested, or None.
            test: what was measured of it, or None.
        """
        evaluations = [evaluation for _, evaluation in folder.evaluations()]
        lines = folder.read_metrics()
        timed = [line for line in lines if "loss" in line and line["overhead"]]
        return cls(
            finished=finished,
            views=len(views),
            trainable=views.trainable,
            steps=steps,
            skipped=sum("skipped" in line for line in lines),
            before=evaluations[0] if evaluations else None,
            after=evaluations[-1] if len(evaluations) > 1 else None,
            best_step=best_step,
            test=test,
            step_seconds=_median([line["seconds"] for line in timed]),
            forward_seconds=_median([line["seconds"] / line["overhead"] / forwards for line in timed]),
            overhead=_median([line["overhead"] for line in timed]),
            rss_loaded_bytes=rss_loaded_bytes,
            rss_peak_bytes=peak_rss_bytes(),
            delta_bytes=folder.delta.stat().st_size,
            trajectory_bytes=folder.trajectory.stat().st_size if folder.trajectory.exists() else 0,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as `summary.json` has it; what was tested where something was."""
        plain = {f"eval_{name}" if name in ("before", "after") else name: value for name, value in vars(self).items()}
        plain |= {name: value.to_dict() for name, value in plain.items() if isinstance(value, Evaluation)}
        return {name: value for name, value in plain.items() if self.test or name not in ("best_step", "test")}


def step_time(summary: Mapping[str, Any]) -> str:
    """Return what the summary of a run says of its steps, for people."""
    if summary["step_seconds"] is None:
        return "none was done"
    return f"{summary['step_seconds']:.3f} s, {summary['overhead']:.3f} x its forwards"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
