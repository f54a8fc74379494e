"""The steps of a run by backwards: batches of a task, cut as memory allows, and a descent along their gradient."""

from functools import partial
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zoquant.distributed.exchange import add_up
from zoquant.errors import DataError
from zoquant.optim.measuring import StepResult
from zoquant.tasks import Task
from zoquant.tasks.objective import WithObjective
from zoquant.training.backward.allocation import give_back_large_blocks
from zoquant.training.micro_batches import MicroBatches
from zoquant.training.settings import Settings
from zoquant.training.steps import cut
from zoquant.training.stopwatch import Stopwatch
from zoquant.views.model_views import Views

NO_GRADIENT = (
    "gradient is backward, but the objective is a number without a gradient. Take objective loss, gradient forward, or "
    "forward_steps, which follow the steps along the gradient of the loss."
)


class BackwardSteps:
    """What does one step after the other, as `zoquant.training.steps.Steps` does.

    Attributes:
        descent: what moves the deltas.
        watch: the time of the forwards.
        slower: what the learning rate of the next step is multiplied by.
        forwards: how many forwards of the batch a step takes.

    Args:
        model: the model.
        train: the examples to learn from.
        settings: of the run.
        views: what moves.
        micro_batches: how batches are cut where memory runs out.

    Raises:
        DataError: what the run makes smaller has no gradient.
        UnsupportedLayoutError: a layer has no backward.
    """

    forwards = 1

    def __init__(
        self, model: nn.Module, train: Task[Any], settings: Settings, views: Views, micro_batches: MicroBatches
    ) -> None:
        if isinstance(train, WithObjective):
            raise DataError(NO_GRADIENT)
        self._model, self._train, self._settings = model, train, settings
        self._micro_batches, self.watch = micro_batches, Stopwatch()
        self._rank, self._ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.descent = settings.descent(model, views, add_up if dist.is_initialized() else None)
        self._lr, self.slower = self.descent.lr, 1.0
        give_back_large_blocks()
        try:
            self._try()
        except BaseException:
            self.descent.close()
            raise

    @property
    def done(self) -> int:
        """The number of steps so far."""
        return self.descent.steps

    @property
    def shared(self) -> str | None:
        """How processes share a step, for people; None for a process by itself."""
        if self._ranks == 1:
            return None
        return f"{self._ranks} processes share the micro-batches of a step; their gradients are added up."

    @property
    def notices(self) -> list[str]:
        """What people should know before the first step."""
        said = [self.shared] if self.shared is not None else []
        dropping = [part for part in self._model.modules() if isinstance(part, nn.Dropout) and part.training and part.p]
        if dropping:
            said.append(f"the model is in training mode: {len(dropping)} layers drop out, anew in each forward.")
        return said

    def begin(self, numbers: dict[str, Any] | None) -> None:
        """Get ready for the first step of this life of the run; nothing is measured, so there are no numbers."""
        self._micro_batches.agree()
        if self._ranks > 1:  # rank 0 alone has read what an earlier life of the run left
            state = self.descent.state()
            for tensor in state.values():
                dist.broadcast(tensor, 0)
            self.descent.load_state(state)

    def measure(self) -> NoReturn:
        """Raise: a run by backwards has no number to be measured."""
        raise ValueError("a run by backwards has no numbers to calibrate.")

    def step(self) -> StepResult:
        """Do the next step."""
        step, chosen = self.done, self._settings
        self.descent.lr = self._lr * chosen.rate_at(step) * self.slower
        batch = self._train.batch_of_step(chosen.seed, step, chosen.batch_size)
        return self._micro_batches.fit(step, cut(batch, chosen.micro_batches), self._attempt)

    def close(self) -> None:
        """Let the model ask for no gradient any more."""
        self.descent.close()

    def check(self) -> None:
        """Do nothing: every process has added up the same gradients."""

    def _attempt(self, parts_of: list[list[Any]]) -> StepResult:
        """Do a step whose micro-batches are cut into these parts; of several processes each takes its share."""
        self.watch.discard()
        parts = [part for batch in parts_of for part in batch]
        own = parts[self._rank :: self._ranks]
        closures = [partial(self.watch.forward, partial(self._loss, part)) for part in own]
        weights = [float(part.weight) for part in parts] if len(parts) > 1 else [1.0]
        return self.descent.step(closures, weights[self._rank :: self._ranks], total=sum(weights))

    def _loss(self, batch: Any) -> Tensor:
        loss: Tensor = self._train.loss(self._model, batch)  # type: ignore[assignment]  # `_try` has seen that it is one
        return loss

    def _try(self) -> None:
        """See in a forward of one example that the loss has a gradient."""
        with torch.enable_grad():
            loss: Any = self._loss(self._train.batch_of_step(self._settings.seed, 0, 1))
        if not (isinstance(loss, Tensor) and loss.requires_grad):
            raise DataError(
                f"gradient is backward, but the loss of {type(self._train).__name__} has no gradient. Take metric "
                "loss, or gradient forward."
            )
