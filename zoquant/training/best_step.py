"""The step of a run that did best on held-out data: the papers test that one, not the last."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from zoquant.record.delta import Delta
from zoquant.tasks import Evaluation
from zoquant.views.model_views import Views


@dataclass(frozen=True)
class BestStep:
    """How the best step is found.

    Attributes:
        metric: what is compared: `"loss"`, of which less is better, or another, of which more is.
        evaluations: how often a run is evaluated.
    """

    metric: str
    evaluations: int

    def every(self, steps: int) -> int:
        """Return the steps between two evaluations of a run of so many steps."""
        return max(1, steps // self.evaluations)

    def among(self, found: Sequence[tuple[int, Evaluation]]) -> int | None:
        """Return the number of steps after which a run did best, the fewest of several; None before the first step."""
        scores = {step: self.score(evaluation) for step, evaluation in found if step > 0}
        return max(scores, key=scores.__getitem__, default=None)

    def score(self, evaluation: Evaluation) -> float:
        """Return what is compared; more is better."""
        return -evaluation[self.metric] if self.metric == "loss" else evaluation[self.metric]


CAUSAL = BestStep("loss", 5)
"""Source: MeZO's `large_models/mezo.sh` at 552cb1b: transformers' best checkpoint is that of the least loss."""
MASKED = BestStep("accuracy", 10)
"""Source: MeZO's `medium_models/mezo.sh` and `medium_models/src/trainer.py` at 552cb1b."""


@contextmanager
def holding(views: Views, delta: Delta) -> Iterator[None]:
    """Let a model hold another delta of its base for a while."""
    held = {key: views.delta(key) for key in views.keys}
    views.set_delta(delta.values)
    try:
        yield
    finally:
        views.set_delta(held)
