"""What a run tells of itself while it is under way."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from zoquant.optim.choosing import Numbers
from zoquant.optim.measuring import StepResult
from zoquant.tasks import Evaluation


@dataclass(frozen=True)
class Progress:
    """What a run tells after each step and each evaluation.

    Attributes:
        step: steps done.
        steps: steps in all.
        result: what the last step saw; None for an evaluation before the first.
        evaluation: the evaluation made after this step, if any.
        seconds: time of the step.
        forward_seconds: mean time of its forwards.
        calibration: what was chosen before the first step, and why.
        skipped: why the step was undone and counts for nothing; None for one that was done.
        overhead: time of the step ÷ time of its forwards.
        notice: what the run has chosen by itself, and why.
        doing: what begins now and may take long; None for the next step.
    """

    step: int
    steps: int
    result: StepResult | None = None
    evaluation: Evaluation | None = None
    seconds: float = 0.0
    forward_seconds: float = 0.0
    calibration: Numbers | None = None
    skipped: str | None = None
    overhead: float = math.nan
    notice: str | None = None
    doing: str | None = None


OnProgress = Callable[[Progress], None]
