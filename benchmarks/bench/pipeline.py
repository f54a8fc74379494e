"""What it costs to make the batch of a step, against the step: data should never stall training."""

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from zoquant.cli.bench.measure import sample_ids
from zoquant.cli.bench.timing import ratio, spread
from zoquant.optim.choosing import PREFERRED
from zoquant.tasks import Classification, Evaluation, PerExample, Template
from zoquant.training import Job, RunFolder, Settings, run
from zoquant.training.moving import Moving

_ROWS = 1000
_WARM_UP = 2
_LABELS = {"0": "terrible", "1": "great"}


def reviews(model: nn.Module, tokenizer: Any, length: int) -> Classification:
    """Return a task of a thousand rows of random text, of about so many tokens each."""
    texts = tokenizer.batch_decode(sample_ids(model, _ROWS, length), skip_special_tokens=True)
    rows = [{"sentence": text, "label": str(number % 2)} for number, text in enumerate(texts)]
    device = next(model.buffers()).device
    return Classification(rows, Template("{sentence} It was {label}", _LABELS), tokenizer, device)


class Watched:
    """A task that notes when each batch was asked for, and when it was there.

    Attributes:
        asked: clock at each call of `batch_of_step`.
        made: clock at its return.
    """

    def __init__(self, task: PerExample[Any]) -> None:
        self.task = task
        self.asked: list[float] = []
        self.made: list[float] = []

    def __len__(self) -> int:
        return len(self.task)

    def batch_of_step(self, seed: int, step: int, size: int) -> Any:
        """Return the batch of a step."""
        self.asked.append(time.perf_counter())
        batch = self.task.batch_of_step(seed, step, size)
        self.made.append(time.perf_counter())
        return batch

    def loss(self, model: nn.Module, batch: Any) -> Tensor | float:
        """Return the loss of a batch."""
        return self.task.loss(model, batch)

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of each example."""
        return self.task.losses(model, batch)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Return how well a model does."""
        return self.task.evaluate(model)


def pipeline(model: nn.Module, task: PerExample[Any], batch: int, rounds: int) -> dict[str, Any]:
    """Return the seconds that a batch takes to make, those of a whole step with it, and their ratio.

    They are taken in a run of the trainer that chooses for itself what moves, from one batch to the next: journal and
    metrics count, and so does all that it spares itself. Its learning rate is 0.

    Args:
        model: the model; it is left as it was.
        task: what makes the batches; its texts have become token ids before.
        batch: examples a step.
        rounds: steps that count; a few before them do not.
    """
    count = _WARM_UP + rounds + 1
    moving = Moving.choose(Settings(steps=count, batch_size=batch), model, task)
    watched, settings = Watched(task), replace(moving.settings, lr=0.0, eps=PREFERRED)
    with TemporaryDirectory() as folder:
        run(Job(model, watched, None, settings, RunFolder(Path(folder) / "run"), {}))
    asked, made = watched.asked[-rounds - 1 :], watched.made[-rounds - 1 :]
    batches = [there - start for start, there in zip(asked[:-1], made[:-1], strict=True)]
    steps = [after - start for start, after in pairwise(asked)]
    return {
        "rows": len(task),
        "subspace": settings.subspace,
        "values": moving.views.trainable,
        "batch_seconds": spread(batches),
        "step_seconds": spread(steps),
        "batch_over_step": ratio(batches, steps),
    }
