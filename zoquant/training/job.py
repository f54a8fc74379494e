"""A run to do."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from zoquant.tasks import Task
from zoquant.training.best_step import CAUSAL, BestStep
from zoquant.training.config import Config
from zoquant.training.run_folder import RunFolder
from zoquant.training.settings import Settings


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
        config: what the folder's config file says beside the settings that the run uses, or None for no such file.
        test: the examples to measure the best step on, or None.
        best: how that step is found among the evaluations.
        notice: what else is told at the start, or None.
    """

    model: nn.Module
    train: Task[Any]
    held_out: Task[Any] | None
    settings: Settings
    folder: RunFolder
    identity: dict[str, Any] = field(default_factory=dict)
    eval_every: int = 0
    config: Config | None = None
    test: Task[Any] | None = None
    best: BestStep = CAUSAL
    notice: str | None = None

    def config_text(self, settings: Settings) -> str | None:
        """Return the text of the folder's config file for a run of these settings."""
        return None if self.config is None else replace(self.config, settings=settings).to_toml()
