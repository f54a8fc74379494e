"""Classification by label words: a template turns a row into a prompt, the model chooses among the words.

Source: MeZO (arXiv 2305.17333, appendix E.2): the loss is the cross-entropy over the label words' scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import DataError
from zoquant.tasks.encoding import Encoder, padded
from zoquant.tasks.fitting import in_groups
from zoquant.tasks.kinds.examples import Labelled, WordChoices
from zoquant.tasks.rows import Row
from zoquant.tasks.sampling import by_length
from zoquant.tasks.scoring import hidden_states, logits_at
from zoquant.tasks.template import Prompt, Template, label_numbers


@dataclass(frozen=True)
class Batch(Labelled):
    """Some examples as token ids: with label words of one token a row is an example, else an example and a word.

    Attributes:
        lengths: tokens of the prompt, int64 `[examples]`.
        rows: tokens of each row.
        repeated: how often the same examples stand one below the other.
    """

    lengths: Tensor
    rows: tuple[int, ...]
    repeated: int = 1

    def repeat(self, times: int) -> "Batch":
        """Return the batch so many times one below the other, as probes of rows and columns ask for."""
        labels, lengths = self.labels.repeat(times), self.lengths.repeat(times)
        return Batch(self.ids.repeat(times, 1), labels, lengths, self.rows * times, self.repeated * times)

    def part(self, start: int, stop: int) -> "Batch":
        each = len(self.rows) // self.weight
        rows = slice(start * each, stop * each)
        return Batch(self.ids[rows], self.labels[start:stop], self.lengths[start:stop], self.rows[rows])


class Classification(WordChoices[Batch]):
    """Examples of one template, ready to be scored by a causal language model.

    Args:
        rows: the data.
        template: the prompt and the label words.
        tokenizer: a transformers tokenizer.
        device: where batches go.
        max_length: most tokens that the model takes; None for no bound.
        prefix: text before every prompt, e.g. worked examples.
        sfc: a template without the input, e.g. `"It was {label}"`: in evaluation what a word scores after it is
            taken off. None for none.
        balanced: whether every label has its share of a batch of training; else rows are drawn whatever their label.

    Attributes:
        single: whether every label word is one token.

    Raises:
        DataError: a field is missing, a row has an unknown label, or a label has no row.
    """

    def __init__(
        self, rows: Sequence[Row], template: Template, tokenizer: Any, device: torch.device, *,
        max_length: int | None = None, prefix: str = "", sfc: str | None = None, balanced: bool = True,
    ) -> None:  # fmt: skip
        template.check(rows, [template.label])
        labels = label_numbers(rows, template.words, template.label)
        encoder = Encoder(tokenizer, max_length, prefix)
        self.words = [encoder.continuation(template.continuation(value), template.ending) for value in template.words]
        if len({tuple(word) for word in self.words}) < len(self.words):
            words = ", ".join(map(repr, template.words.values()))
            raise DataError(f"labels: two of {words} are the same tokens. Choose other words.")
        after = [max(map(len, self.words))] * len(rows)
        self.prompts = encoder.prompts([template.prompt(row) for row in rows], after)
        lengths, names = [len(prompt) for prompt in self.prompts], list(template.words.values())
        super().__init__(
            labels, lengths, names, device, lambda example: template.prompt(rows[example]), balanced=balanced
        )
        self.empty: list[list[int]] = []
        if sfc is not None:
            free = Prompt(sfc)
            free.check(rows)
            self.empty = Encoder(tokenizer, max_length).prompts([free.prompt(row) for row in rows], after)
        self.single = all(len(word) == 1 for word in self.words)
        self._tokens = torch.tensor([word[0] for word in self.words], device=device)

    def batch(self, examples: Sequence[int]) -> Batch:
        return self._batch([self.prompts[i] for i in examples], [self.labels[i] for i in examples])

    def scores(self, model: nn.Module, batch: Batch, *, summed: bool = False) -> Tensor:
        """Return the log-probability of every label word, up to a constant a row: float32 `[examples, labels]`.

        Args:
            model: a causal language model.
            batch: the examples.
            summed: of a word of several tokens the sum of theirs, not the mean.

        Source: MeZO at 552cb1b, `large_models/utils.py`, `forward_wrap_with_option_len`, which takes the mean.
        """
        states = hidden_states(model, batch.ids, batch.rows, batch.repeated)
        return (
            self.word_scores(model, _last(states, batch))
            if self.single
            else self._long_scores(model, states, batch, summed)
        )

    @torch.no_grad()
    def last_states(self, model: nn.Module, examples: Sequence[int], *, batch_size: int = 32) -> Tensor:
        """Return the last hidden state of the prompt of some examples, `[examples, width]`.

        Where memory runs out, fewer go through at a time.
        """

        def measure(some: list[int]) -> Tensor:
            batch = self.batch([examples[place] for place in some])
            return _last(hidden_states(model, batch.ids, batch.rows), batch)

        lengths = [len(self.prompts[example]) for example in examples]
        found = {
            place: state for places, states in in_groups(by_length(lengths, batch_size), measure)
            for place, state in zip(places, states, strict=True)
        }  # fmt: skip
        return torch.stack([found[place] for place in range(len(examples))])

    def word_scores(self, model: nn.Module, states: Tensor) -> Tensor:
        """Return what each label word of one token scores after some last hidden states, float32 `[states, labels]`."""
        return logits_at(model, states, self._tokens)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy over the label words of each example, float32 `[examples]`."""
        return nn.functional.cross_entropy(self.scores(model, batch), batch.labels, reduction="none")

    def _batch(self, prompts: Sequence[list[int]], labels: Sequence[int]) -> Batch:
        rows = prompts if self.single else [prompt + word for prompt in prompts for word in self.words]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        where = torch.tensor(labels, device=self.device)
        return Batch(padded(rows).to(self.device), where, lengths, tuple(map(len, rows)))

    def _offsets(self, model: nn.Module) -> Tensor | None:
        """Return what the words score without the input, `[examples, labels]`; equal prompts are scored once.

        Source: surface form competition, Holtzman et al. (arXiv 2104.08315), as MeZO's `--sfc` has it.
        """
        if not self.empty:
            return None
        distinct = sorted({tuple(prompt) for prompt in self.empty})
        batches = [self._batch([list(prompt)], [0]) for prompt in distinct]
        scores = torch.cat([self.scores(model, batch, summed=True) for batch in batches])
        place = {prompt: number for number, prompt in enumerate(distinct)}
        return scores[[place[tuple(prompt)] for prompt in self.empty]]

    def _sums(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.scores(model, batch, summed=True)

    def _long_scores(self, model: nn.Module, states: Tensor, batch: Batch, summed: bool) -> Tensor:
        """Score words of several tokens: the mean of their tokens' log-probabilities, or the sum."""
        columns = []
        for number, word in enumerate(self.words):
            rows = states[number :: len(self.words)]
            target = torch.tensor(word, device=states.device)
            places = batch.lengths[:, None] - 1 + torch.arange(len(word), device=states.device)
            picked = rows[torch.arange(len(rows), device=states.device)[:, None], places]
            chances = logits_at(model, picked).log_softmax(-1)
            found = chances.gather(-1, target.expand(len(rows), -1)[..., None]).squeeze(-1)
            columns.append(found.sum(-1) if summed else found.mean(-1))
        return torch.stack(columns, -1)


def _last(states: Tensor, batch: Batch) -> Tensor:
    """Return the hidden states of the last token of each prompt."""
    return states[torch.arange(len(states), device=states.device), batch.lengths - 1]
