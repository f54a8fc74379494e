"""What a run came to."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoquant.tasks import Evaluation
from zoquant.training.memory.resident import peak_rss_bytes
from zoquant.training.run_folder import RunFolder
from zoquant.views.model_views import Views

_SOMETIMES = ("best_step", "test", "better_step", "better")


@dataclass(frozen=True)
class Outcome:
    """What a run came to, as `summary.json` has it.

    Of the values that may move, `changed` is the share that differs from the base in the dtype that stores them. Steps
    that were skipped had no finite loss, and were undone. `after` is of the step whose delta the folder holds, `test`
    of `best_step`, which did best on held-out data. A run that tests nothing may have a `better_step`, measured better
    than the last: its delta is in `best.safetensors`. Times are medians over the steps of all lives of the run, None
    before the first: of a step, of a forward of the batch, and step ÷ its forwards. A run by backwards has no
    trajectory. `rss_loaded_bytes` is the resident memory before the first forward.
    """

    finished: bool
    views: int
    trainable: int
    changed: float
    steps: int
    skipped: int
    before: Evaluation | None
    after: Evaluation | None
    best_step: int | None
    test: Evaluation | None
    better_step: int | None
    better: Evaluation | None
    step_seconds: float | None
    forward_seconds: float | None
    overhead: float | None
    rss_loaded_bytes: int
    rss_peak_bytes: int
    delta_bytes: int
    trajectory_bytes: int

    @classmethod
    def read(
        cls, folder: RunFolder, views: Views, steps: int, forwards: int, *, finished: bool, changed: float,
        rss_loaded_bytes: int, best_step: int | None, test: Evaluation | None,
        better_step: int | None,
    ) -> "Outcome":  # fmt: skip
        """Return what the folder of a run says of it, after everything was saved; a step takes so many forwards."""
        found = folder.evaluations()
        evaluations = [evaluation for step, evaluation in found if best_step is None or step <= best_step]
        lines = folder.read_metrics()
        timed = [line for line in lines if "loss" in line and line["overhead"]]
        return cls(
            finished=finished,
            views=len(views),
            trainable=views.trainable,
            changed=changed,
            steps=steps,
            skipped=sum("skipped" in line for line in lines),
            before=evaluations[0] if evaluations else None,
            after=evaluations[-1] if len(evaluations) > 1 else None,
            best_step=best_step,
            test=test,
            better_step=better_step,
            better=None if better_step is None else dict(found)[better_step],
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
        return {name: value for name, value in plain.items() if value is not None or name not in _SOMETIMES}


def warnings_of(summary: Mapping[str, Any]) -> list[str]:
    """Return what speaks against exporting what a run came to, for people; nothing where nothing does."""
    found: list[str] = []
    before, after = summary.get("eval_before"), summary.get("better") or summary.get("eval_after")
    if summary["steps"] and not summary["changed"]:
        found.append(
            f"No value changed: all {summary['trainable']:,} round to those of the base in the dtype of the file, so "
            "an export would be the base. Begin a new run with a larger lr."
        )
    if before and after and (name := _fallen(before, after)):
        found.append(
            f"Held-out {name} got worse: {before[name]:.4g} before, {after[name]:.4g} after. Keep the base, and begin "
            "a new run with more steps, more examples a step, or a smaller lr."
        )
    return found


def _fallen(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return the metric that says how good a model is if it got worse, None if it did not."""
    name: str = after["primary"]
    worse = after[name] > before[name] if name == "loss" else after[name] < before[name]
    return name if worse else None


def step_time(summary: Mapping[str, Any]) -> str:
    """Return what the summary of a run says of its steps, for people."""
    if summary["step_seconds"] is None:
        return "none was done"
    return f"{summary['step_seconds']:.3f} s, {summary['overhead']:.3f} x its forwards"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
