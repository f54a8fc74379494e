"""Batches of token ids of which some are scored: what language modelling, choices and answers have in common."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from zoquant.tasks.encoding import padded
from zoquant.tasks.scoring import hidden_states, token_log_probs


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
    def of(cls, sequences: Sequence[Scored], device: torch.device) -> "Sequences":
        """Return sequences as a batch."""
        ids, scored = padded([each.ids for each in sequences]), padded([each.scored for each in sequences]).bool()
        return cls(ids.to(device), scored.to(device), tuple(len(each.ids) for each in sequences))

    @property
    def weight(self) -> int:
        """The number of tokens that count, or of rows."""
        return len(self.rows) if self.by_example else int(self.scored.sum())

    def halves(self) -> tuple["Sequences", "Sequences"]:
        """Return the first and the second half of the rows."""
        middle = len(self.rows) // 2
        return self.part(0, middle), self.part(middle, len(self.rows))

    def part(self, start: int, stop: int) -> "Sequences":
        """Return some neighbouring rows."""
        return replace(self, ids=self.ids[start:stop], scored=self.scored[start:stop], rows=self.rows[start:stop])

    def log_probs(self, model: nn.Module) -> Tensor:
        """Return the log-probability of each row's scored tokens, summed: float32 `[rows]`."""
        values = token_log_probs(model, hidden_states(model, self.ids, self.rows), self.ids, self.scored)
        sums = torch.zeros(len(self.rows), device=values.device)
        return sums.index_add_(0, self.scored.nonzero(as_tuple=True)[0], values)

    def loss(self, model: nn.Module) -> Tensor:
        """Return the mean of −log p over the scored tokens, a scalar."""
        return -self.log_probs(model).sum() / int(self.scored.sum())
