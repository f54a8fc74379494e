"""What it costs to make the batch of a step, against the step: data should never stall training."""

from dataclasses import replace
from itertools import count
from typing import Any, cast

from torch import nn

from zoquant.automatic import resolve
from zoquant.batched import BatchedZO
from zoquant.bench.sample import sample_ids
from zoquant.bench.timing import in_turn, ratio, spread
from zoquant.optim import ZOSGD
from zoquant.settings import Settings
from zoquant.tasks import Classification, PerExample, Task, Template

_ROWS = 1000
_LABELS = {"0": "terrible", "1": "great"}


def reviews(model: nn.Module, tokenizer: Any, length: int) -> Classification:
    """Return a task of a thousand rows of random text, of about so many tokens each."""
    texts = tokenizer.batch_decode(sample_ids(model, _ROWS, length), skip_special_tokens=True)
    rows = [{"sentence": text, "label": str(number % 2)} for number, text in enumerate(texts)]
    device = next(model.buffers()).device
    return Classification(rows, Template("{sentence} It was {label}", _LABELS), tokenizer, device)


def pipeline(model: nn.Module, task: Task[Any], batch: int, rounds: int) -> dict[str, Any]:
    """Return the seconds that a batch takes to make, those of a whole step with it, and their ratio.

    The step is that of `zoquant train` where nobody says how: with a direction for each example if that is possible.

    Args:
        model: the model; it is left as it was.
        task: what makes the batches; its texts have become token ids before.
        batch: examples a step.
        rounds: repetitions.
    """
    resolved = resolve(Settings(batch_size=batch), model, task)
    optimizer, numbers = replace(resolved.settings, lr=0.0).optimizer(resolved.views), count()

    def step() -> None:
        _step(optimizer, model, task, task.batch_of_step(0, next(numbers), batch))

    times = in_turn({"batch": lambda: task.batch_of_step(0, next(numbers), batch), "step": step}, rounds)
    return {
        "rows": len(task),
        "subspace": resolved.settings.subspace,
        "values": resolved.views.trainable,
        "batch_seconds": spread(times["batch"]),
        "step_seconds": spread(times["step"]),
        "batch_over_step": ratio(times["batch"], times["step"]),
    }


def _step(optimizer: ZOSGD, model: nn.Module, task: Task[Any], made: Any) -> None:
    """Do one step on a batch, as the trainer does."""
    if isinstance(optimizer, BatchedZO):
        each = cast(PerExample[Any], task)
        optimizer.step(lambda repeat: each.losses(model, made.repeat(repeat)))
    else:
        optimizer.step(lambda: float(task.loss(model, made)))
