"""Sequences of token ids of which some are scored: what language modelling, choices and answers have in common."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from zoquant.tasks.encoding import padded
from zoquant.tasks.fitting import in_groups
from zoquant.tasks.kinds.examples import Examples
from zoquant.tasks.sampling import by_length
from zoquant.tasks.scoring import hidden_states, token_log_probs

S = TypeVar("S", bound="Sequences")


@dataclass(frozen=True)
class Scored:
    """One sequence.

    Attributes:
        ids: its tokens.
        scored: which of them count, as long; never the first.
    """

    ids: list[int]
    scored: list[bool]

    @classmethod
    def after(cls, prompt: list[int], continuation: list[int]) -> "Scored":
        """Return a prompt with what follows it, of which the latter alone counts."""
        return cls(prompt + continuation, [False] * len(prompt) + [True] * len(continuation))

    @property
    def count(self) -> int:
        """How many tokens count."""
        return sum(self.scored)


@dataclass(frozen=True)
class Sequences:
    """A batch, padded at the end.

    Attributes:
        ids: int64 `[rows, length]`.
        scored: which tokens count, bool `[rows, length]`.
        rows: tokens of each row.
        by_example: whether rows weigh alike in a mean, as where each has a score, or as many as their tokens.
    """

    ids: Tensor
    scored: Tensor
    rows: tuple[int, ...]
    by_example: bool = False

    @classmethod
    def of(cls: type[S], sequences: Sequence[Scored], device: torch.device) -> S:
        """Return sequences as a batch."""
        ids, scored = padded([each.ids for each in sequences]), padded([each.scored for each in sequences]).bool()
        return cls(ids.to(device), scored.to(device), tuple(len(each.ids) for each in sequences))

    @property
    def weight(self) -> int:
        """The number of tokens that count, or of rows."""
        return len(self.rows) if self.by_example else int(self.scored.sum())

    def halves(self: S) -> tuple[S, S]:
        """Return the first and the second half of the rows."""
        middle = len(self.rows) // 2
        return self.part(slice(middle)), self.part(slice(middle, None))

    def part(self: S, some: slice) -> S:
        """Return some neighbouring rows."""
        return replace(self, ids=self.ids[some], scored=self.scored[some], rows=self.rows[some])

    def log_probs(self, model: nn.Module) -> Tensor:
        """Return the log-probability of each row's scored tokens, summed: float32 `[rows]`."""
        values = token_log_probs(model, hidden_states(model, self.ids, self.rows), self.ids, self.scored)
        sums = torch.zeros(len(self.rows), device=values.device)
        return sums.index_add_(0, self.scored.nonzero(as_tuple=True)[0], values)


class SequenceExamples(Examples[S]):
    """Examples that are learned by the log-probability of their scored tokens."""

    def loss(self, model: nn.Module, batch: S) -> Tensor:
        """Return the mean of −log p over the tokens that count, in nats, a scalar."""
        return -batch.log_probs(model).sum() / int(batch.scored.sum())


def log_probs_of(model: nn.Module, sequences: Sequence[Scored], device: torch.device, size: int) -> list[float]:
    """Return the summed log-probability of each sequence's scored tokens, those of like length in a forward."""
    sums = [0.0] * len(sequences)

    def measure(some: list[int]) -> list[float]:
        found: list[float] = Sequences.of([sequences[i] for i in some], device).log_probs(model).tolist()
        return found

    for some, values in in_groups(by_length([len(each.ids) for each in sequences], size), measure):
        for place, value in zip(some, values, strict=True):
            sums[place] = value
    return sums
