"""The steps of a run: batches of a task, cut as memory allows, and the optimizer that makes steps of their losses."""

from functools import partial
from typing import Any, cast

import torch
from torch import nn

from zoquant.distributed import DistributedZO
from zoquant.distributed.launch import stepper
from zoquant.optim.choosing import Numbers
from zoquant.optim.closures import Closure, RowLosses, mean_loss
from zoquant.optim.measuring import StepResult
from zoquant.optim.trunk import Trunk
from zoquant.tasks import PerExample, Task
from zoquant.training.micro_batches import MicroBatches
from zoquant.training.moving import Moving
from zoquant.training.stopwatch import Stopwatch

_CALIBRATION_BATCHES = 2


class Steps:
    """What does one step after the other.

    Attributes:
        optimizer: of the run.
        watch: the time of the forwards.
        slower: what the learning rate of the next step is multiplied by.

    Args:
        model: the model.
        train: the examples to learn from.
        moving: what moves; its optimizer holds the steps that an earlier life of the run did.
        micro_batches: how batches are cut where memory runs out.
    """

    def __init__(self, model: nn.Module, train: Task[Any], moving: Moving, micro_batches: MicroBatches) -> None:
        self.optimizer, self.watch = moving.optimizer, Stopwatch()
        self._model, self._train, self._settings = model, train, moving.settings
        self._micro_batches = micro_batches
        self._stepper = stepper(moving.optimizer)
        self._trunk = Trunk(model, moving.views)
        self._lr, self.slower = 0.0, 1.0

    @property
    def done(self) -> int:
        """The number of steps so far."""
        return self.optimizer.steps

    @property
    def forwards(self) -> int:
        """How many forwards of the batch a step takes."""
        return self.optimizer.forwards

    @property
    def shared(self) -> str | None:
        """How processes share a step, for people; None for a process by itself."""
        stepper = self._stepper
        return stepper.told(self._settings.micro_batches) if isinstance(stepper, DistributedZO) else None

    @property
    def notices(self) -> list[str]:
        """What people should know before the first step."""
        return [] if self.shared is None else [self.shared]

    def measure(self) -> Numbers:
        """Return what probes of the first batches say of the numbers that were not given, and set those."""
        chosen = self._settings
        batches = [self._batch(step) for step in range(_CALIBRATION_BATCHES)]
        rates = [chosen.rate_at(step) for step in range(chosen.steps)]

        def calibrate(cut: list[list[Any]]) -> Numbers:
            each = chosen.micro_batches
            losses = [self._mean(cut[start : start + each]) for start in range(0, len(cut), each)]
            return self.optimizer.calibrate(losses, choose=chosen.missing, schedule=rates)

        with self._trunk.shared():
            return self._micro_batches.fit(0, [part for batch in batches for part in batch], calibrate)

    def begin(self, numbers: dict[str, Any] | None) -> None:
        """Get ready for the first step of this life of the run, with lr, eps and clip where they were chosen."""
        group = self.optimizer.param_groups[0]
        if numbers is not None:
            group.update({name: numbers[name] for name in ("lr", "eps", "clip")})
        self._lr = float(group["lr"])
        self._micro_batches.agree()
        if self.optimizer.together:
            # The trunk sees a forward first, so that every step is computed alike.
            batch = self._train.batch_of_step(self._settings.seed, 0, 1)
            with self._trunk.shared(), torch.no_grad():
                cast(PerExample[Any], self._train).losses(self._model, batch)

    def step(self) -> StepResult:
        """Do the next step.

        Raises:
            LossError: a loss is not finite; the step was undone and counts.
            DoesNotFitError: one example alone needs more memory than there is.
        """
        step = self.done
        self.optimizer.param_groups[0]["lr"] = self._lr * self._settings.rate_at(step) * self.slower
        return self._micro_batches.fit(step, self._batch(step), self._attempt)

    def close(self) -> None:
        """Do nothing: forwards leave the model as it was."""

    def check(self) -> None:
        """See at the end that all processes hold the same.

        Raises:
            DivergedError: one of them does not.
        """
        if isinstance(self._stepper, DistributedZO):
            self._stepper.check()

    def _batch(self, step: int) -> list[Any]:
        """Return the micro-batches of a step."""
        chosen = self._settings
        return cut(self._train.batch_of_step(chosen.seed, step, chosen.batch_size), chosen.micro_batches)

    def _attempt(self, cut: list[list[Any]]) -> StepResult:
        """Do a step whose micro-batches are cut into these parts."""
        self.watch.discard()
        parts = [part for batch in cut for part in batch]
        together = self.optimizer.together
        closures = [
            self._losses(part) if together else partial(self.watch.forward, partial(self._loss, part)) for part in parts
        ]
        weights = None if len(parts) == 1 else [part.weight for part in parts]
        with self._trunk.shared(self.optimizer.repeat):
            result: StepResult = self._stepper.step(closures, weights)
        return result

    def _losses(self, part: Any) -> RowLosses:
        """Return what evaluates the losses of the examples of a part of a batch, as often as it is told."""
        model, train = self._model, cast(PerExample[Any], self._train)
        return lambda repeat: self.watch.forward(lambda: train.losses(model, part.repeat(repeat)))

    def _mean(self, cut: list[list[Any]]) -> Closure:
        """Return what evaluates the loss of a batch whose micro-batches are cut into these parts."""
        parts = [part for micro_batch in cut for part in micro_batch]
        closures = [partial(self._loss, part) for part in parts]
        return closures[0] if len(parts) == 1 else mean_loss(closures, [part.weight for part in parts])

    def _loss(self, batch: Any) -> float:
        return float(self._train.loss(self._model, batch))


def cut(batch: Any, count: int) -> list[Any]:
    """Return a batch of a task in so many parts, a power of two."""
    return [batch] if count == 1 else [part for half in batch.halves() for part in cut(half, count // 2)]
