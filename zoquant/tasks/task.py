"""What the training loop asks of a task."""

from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from zoquant.tasks.evaluation import Evaluation

B = TypeVar("B")


class Task(Protocol[B]):
    """Examples that a model is trained or measured on. What a batch looks like is the task's own affair.

    Batches of zoquant's tasks have `weight`, the number of examples or tokens that `loss` is the mean of, and
    `halves()`, which returns two batches of about half the examples.
    """

    def __len__(self) -> int:
        """Return the number of examples."""

    def batch_of_step(self, seed: int, step: int, size: int) -> B:
        """Return the batch of a training step: a pure function of its arguments, so that a run can go on anywhere."""

    def loss(self, model: nn.Module, batch: B) -> Tensor | float:
        """Return the number that training makes smaller: a float, or a tensor of one element."""

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Return how well a model does on all examples."""


@runtime_checkable
class PerExample(Task[B], Protocol[B]):
    """A task that tells the loss of each example.

    Its batches have `repeat(times)`, which returns the batch so many times one below the other, as probes of rows and
    columns ask for.
    """

    def losses(self, model: nn.Module, batch: B) -> Tensor:
        """Return the loss of each example, float `[examples]`.

        Two examples share a row of the model's input only within `zoquant.tasks.packing.sharing`, which tells a probe
        whose tokens are whose.
        """
