"""What training makes smaller, when that is not the loss of the task: a metric, a reward, any function."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from zoquant.errors import DataError, one_of
from zoquant.tasks.evaluation import Evaluation
from zoquant.tasks.kinds.classification import Classification
from zoquant.tasks.kinds.generation import Generation, Questions
from zoquant.tasks.kinds.masked import MaskedClassification
from zoquant.tasks.kinds.sequences import Sequences
from zoquant.tasks.metrics import METRICS
from zoquant.tasks.rewards import Generated, Reward
from zoquant.tasks.task import Task

Objective = Callable[[nn.Module, Any], float]
"""Takes the model and a batch of the task; returns the number to make smaller, a mean over the batch's examples."""

OBJECTIVES = ("loss", "accuracy", *METRICS, "reward")


class WithObjective:
    """A task that is trained by another number than its loss; batches and evaluation are the task's own."""

    def __init__(self, task: Task[Any], objective: Objective) -> None:
        self.task, self.objective = task, objective

    def __len__(self) -> int:
        return len(self.task)

    def batch_of_step(self, seed: int, step: int, size: int) -> Any:
        """Return the task's batch of a training step; where it goes through in parts, examples weigh alike in all."""
        batch = self.task.batch_of_step(seed, step, size)
        return replace(batch, by_example=True) if isinstance(batch, Sequences) else batch

    def loss(self, model: nn.Module, batch: Any) -> Tensor | float:
        """Return the objective."""
        return self.objective(model, batch)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Return the task's evaluation."""
        return self.task.evaluate(model)


def check_objective(kind: str, name: str, reward: object | None = None) -> None:
    """See that a kind of task can be trained by an objective.

    Args:
    kind: as `TaskSettings.kind`.
    name: one of `OBJECTIVES`.
    reward: of objective `"reward"`, what scores generations.

    Raises:
    DataError: the name is unknown, or the task has no such metric, or the reward is missing or not asked for.
    """
    if name not in OBJECTIVES:
        raise DataError(f"objective is {name!r}, expected {one_of(OBJECTIVES, name)}")
    if name == "reward" and reward is None:
        raise DataError("objective is 'reward', but no reward is given. Name a URL or a command: --reward.")
    if name != "reward" and reward is not None:
        raise DataError(
            f"a reward is given, but objective is {name!r}. Say --objective reward, or leave the reward out."
        )
    if name == "accuracy" and kind not in ("classification", "masked"):
        raise DataError("objective accuracy is for classification and masked. Take loss, or a metric of generation.")
    if name not in ("loss", "accuracy") and kind != "generation":
        raise DataError(f"objective {name} scores generated texts. Take --task generation, squad or drop.")


def with_objective(task: Task[Any], name: str, reward: Reward | None = None) -> Task[Any]:
    """Return a task that is trained by an objective; the higher a metric or a reward, the smaller its objective.

    Raises:
        DataError: see `check_objective`.
    """
    labelled = isinstance(task, Classification | MaskedClassification)
    kind = "classification" if labelled else "generation" if isinstance(task, Generation) else "language"
    check_objective(kind, name, reward)
    if name == "loss":
        return task
    if name == "accuracy":
        scored = cast(Classification | MaskedClassification, task)
        return WithObjective(task, lambda model, batch: -scored.accuracy(model, batch))
    writer = cast(Generation, task)

    def lost(model: nn.Module, batch: Questions) -> float:
        written = _generated(writer, model, batch)
        if reward is not None:
            return -reward(written)
        return -sum(METRICS[name](each.text, each.references) for each in written) / len(written)

    return WithObjective(task, lost)


def _generated(task: Generation, model: nn.Module, batch: Questions) -> list[Generated]:
    texts = task.generate(model, batch)
    return [
        Generated(task.texts[i], text, tuple(task.references[i]), task.rows[i])
        for text, i in zip(texts, batch.examples, strict=True)
    ]
