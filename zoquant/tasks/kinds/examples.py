"""What all kinds of tasks have in common: examples of which each training step draws some."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from zoquant.tasks.evaluation import Evaluation, Metric, Sample
from zoquant.tasks.fitting import in_groups
from zoquant.tasks.sampling import Draws, by_length

B = TypeVar("B")
_LABELS_TOLD = 30
"""How many labels a table of answers has at most."""
_SAMPLES = 2
"""How many rows of each label are samples."""


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
        words: the label words.
        device: where batches go.
        told: returns the prompt of an example, for people.
        balanced: whether every label has its share of a batch of training; else rows are drawn whatever their label.
    """

    def __init__(
        self, labels: Sequence[int], lengths: Sequence[int], words: Sequence[str], device: torch.device,
        told: Callable[[int], str], *, balanced: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(labels if balanced else [0] * len(labels), device)
        self.labels, self._lengths, self._words = labels, lengths, words
        some = islice(zip_longest(*_by_label(labels)), _SAMPLES)
        self._told = {example: told(example) for each in some for example in each if example is not None}

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
        said: dict[int, int] = {}
        losses: list[float] = []
        offsets = self._offsets(model)

        def measure(examples: list[int]) -> tuple[list[int], list[float]]:
            batch = self.batch(examples)
            scores = self.scores(model, batch) if offsets is None else self._sums(model, batch) - offsets[examples]
            lost = nn.functional.cross_entropy(scores, batch.labels, reduction="none")
            return scores.argmax(-1).tolist(), lost.tolist()

        for examples, (answers, lost) in in_groups(by_length(self._lengths, batch_size), measure):
            said |= zip(examples, answers, strict=True)
            losses += lost
        right = [answer == self.labels[example] for example, answer in said.items()]
        metrics = {"accuracy": Metric.share(right), "loss": Metric.mean(losses)}
        true = [self.labels[example] for example in said]
        counts = _counted(true, list(said.values()), len(self._words))
        return Evaluation("accuracy", metrics, len(self), tuple(self._samples(said)), counts)

    def _samples(self, said: Mapping[int, int]) -> Iterator[Sample]:
        """Yield what was answered to the first rows of each label."""
        for example, prompt in self._told.items():
            answer, label = said[example], self.labels[example]
            yield Sample(prompt, self._words[answer], (self._words[label],), float(answer == label))

    def _offsets(self, model: nn.Module) -> Tensor | None:
        """Return what evaluation takes off the scores, `[examples, labels]`, or None."""
        return None

    def _sums(self, model: nn.Module, batch: L) -> Tensor:
        """Return the scores that evaluation takes `_offsets` off."""
        return self.scores(model, batch)


def _by_label(labels: Sequence[int]) -> list[list[int]]:
    """Return the examples of each label that some have."""
    found: dict[int, list[int]] = {}
    for example, label in enumerate(labels):
        found.setdefault(label, []).append(example)
    return [found[label] for label in sorted(found)][:_LABELS_TOLD]


def _counted(true: Sequence[int], said: Sequence[int], labels: int) -> tuple[tuple[int, ...], ...]:
    """Return how often each label was answered with each; nothing of many labels."""
    counts = Counter(zip(true, said, strict=True))
    few = range(labels if labels <= _LABELS_TOLD else 0)
    return tuple(tuple(counts[label, answer] for answer in few) for label in few)
