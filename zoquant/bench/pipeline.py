"""What it costs to make the batch of a step, against the step: data should never stall training."""

from itertools import count
from typing import Any

import torch
from torch import nn

from zoquant.attach import attach
from zoquant.bench.sample import sample_ids
from zoquant.bench.timing import in_turn, ratio, spread
from zoquant.optim import ZOSGD
from zoquant.tasks import Classification, Task, Template

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

    Args:
        model: the model.
        task: what makes the batches; its texts have become token ids before.
        batch: examples a step.
        rounds: repetitions.
    """
    optimizer, numbers = ZOSGD(attach(model), lr=0.0), count()

    def step() -> None:
        made = task.batch_of_step(0, next(numbers), batch)
        with torch.no_grad():
            optimizer.step(lambda: float(task.loss(model, made)))

    times = in_turn({"batch": lambda: task.batch_of_step(0, next(numbers), batch), "step": step}, rounds)
    return {
        "rows": len(task),
        "batch_seconds": spread(times["batch"]),
        "step_seconds": spread(times["step"]),
        "batch_over_step": ratio(times["batch"], times["step"]),
    }
