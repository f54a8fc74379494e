"""What all kinds of tasks have in common: examples of which each training step draws some."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from zoquant.tasks.evaluation import Evaluation, Metric
from zoquant.tasks.fitting import in_groups
from zoquant.tasks.sampling import Draws, by_length

B = TypeVar("B")
_LABELS_TOLD = 30
"""How many labels a table of answers has at most."""


@dataclass(frozen=True)
class Labelled(ABC):
    """A batch of examples that each have a label.

    Attributes:
        ids: token ids, padded at the end, int64 `[rows, length]`.
        labels: index of the true label, int64 `[examples]`.
    """

    ids: Tensor
    labels: Tensor

    @property
    def weight(self) -> int:
        """The number of examples."""
        return len(self.labels)

    def halves(self: "L") -> tuple["L", "L"]:
        """Return the first and the second half of the examples."""
        middle = self.weight // 2
        return self.part(0, middle), self.part(middle, self.weight)

    @abstractmethod
    def part(self: "L", start: int, stop: int) -> "L":
        """Return some neighbouring examples."""


L = TypeVar("L", bound=Labelled)


class Examples(ABC, Generic[B]):
    """Examples that batches are drawn from."""

    def __init__(self, groups: Sequence[int], device: torch.device) -> None:
        self.device = device
        self._draws, self._count = Draws(groups), len(groups)

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def batch(self, examples: Sequence[int]) -> B:
        """Return some examples as a batch."""

    def batch_of_step(self, seed: int, step: int, size: int) -> B:
        """Return the batch of one training step: a pure function of its arguments, so that a run can go on anywhere."""
        return self.batch(self._draws.of_step(seed, step, size))


class WordChoices(Examples[L]):
    """Examples of which each has one of a few label words.

    Args:
        labels: the index of each example's word.
        lengths: tokens of each example.
        words: how many label words there are.
        device: where batches go.
        balanced: whether every label has its share of a batch of training; else rows are drawn whatever their label.
    """

    def __init__(
        self, labels: Sequence[int], lengths: Sequence[int], words: int, device: torch.device, *, balanced: bool = True
    ) -> None:
        super().__init__(labels if balanced else [0] * len(labels), device)
        self.labels, self._lengths, self._count_of_words = labels, lengths, words

    @abstractmethod
    def scores(self, model: nn.Module, batch: L) -> Tensor:
        """Return what each label word scores, up to a constant a row: float32 `[examples, labels]`."""

    def loss(self, model: nn.Module, batch: L) -> Tensor:
        """Return the mean cross-entropy over the label words, a scalar."""
        return nn.functional.cross_entropy(self.scores(model, batch), batch.labels)

    def accuracy(self, model: nn.Module, batch: L) -> float:
        """Return the share of the examples whose true word scores best."""
        return float((self.scores(model, batch).argmax(-1) == batch.labels).double().mean())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, batch_size: int = 32) -> Evaluation:
        """Return accuracy and loss over all examples, and of a few labels what was answered."""
        said: list[int] = []
        true: list[int] = []
        losses: list[float] = []
        offsets = self._offsets(model)

        def measure(examples: list[int]) -> tuple[list[int], list[int], list[float]]:
            batch = self.batch(examples)
            scores = self.scores(model, batch) if offsets is None else self._sums(model, batch) - offsets[examples]
            lost = nn.functional.cross_entropy(scores, batch.labels, reduction="none")
            return scores.argmax(-1).tolist(), batch.labels.tolist(), lost.tolist()

        for _, (answers, labels, lost) in in_groups(by_length(self._lengths, batch_size), measure):
            said += answers
            true += labels
            losses += lost
        right = [answer == label for answer, label in zip(said, true, strict=True)]
        metrics = {"accuracy": Metric.share(right), "loss": Metric.mean(losses)}
        return Evaluation("accuracy", metrics, len(self), answers=_counted(true, said, self._count_of_words))

    def _offsets(self, model: nn.Module) -> Tensor | None:
        """Return what evaluation takes off the scores, `[examples, labels]`, or None."""
        return None

    def _sums(self, model: nn.Module, batch: L) -> Tensor:
        """Return the scores that evaluation takes `_offsets` off."""
        return self.scores(model, batch)


def _counted(true: Sequence[int], said: Sequence[int], labels: int) -> tuple[tuple[int, ...], ...]:
    """Return how often each label was answered with each; nothing of many labels."""
    counts = Counter(zip(true, said, strict=True))
    few = range(labels if labels <= _LABELS_TOLD else 0)
    return tuple(tuple(counts[label, answer] for answer in few) for label in few)
