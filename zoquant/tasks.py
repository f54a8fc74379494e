"""Classification by label words: a template turns a row into a prompt, the model chooses among the words.

Source: MeZO (arXiv 2305.17333, appendix E.2): the loss is the cross-entropy over the label words' scores.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from string import Formatter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoquant.errors import DataError
from zoquant.rows import Row
from zoquant.scoring import hidden_states, logits_at

LABEL = "label"


@dataclass(frozen=True)
class Template:
    """A prompt with fields in braces that ends in `{label}`, and the word that each label value stands for.

    Attributes:
        text: e.g. `"{sentence} It was {label}"`.
        words: the label's words by its value in the data, e.g. `{"0": "terrible", "1": "great"}`.
    """

    text: str
    words: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.text.endswith("{label}"):
            raise DataError(
                f"template {self.text!r} does not end in {{label}}. Write e.g. '{{sentence}} It was {{label}}'."
            )
        if len(self.words) < 2:
            raise DataError(f"labels: got {len(self.words)}, expected at least two, e.g. '0=terrible,1=great'.")

    @classmethod
    def parse(cls, text: str, labels: str) -> "Template":
        """Return a template with labels as the command line has them: `"0= terrible,1= great"`.

        Raises:
            DataError: a label is not of the form `value=word`, or the template does not end in `{label}`.
        """
        words: dict[str, str] = {}
        for part in labels.split(","):
            value, equals, word = part.partition("=")
            if not equals or not word.strip() or value.strip() in words:
                raise DataError(f"labels: {part!r} is not of the form value=word. Write e.g. '0=terrible,1=great'.")
            words[value.strip()] = word
        return cls(text.replace("\\n", "\n"), words)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that a row must have, without the label."""
        names = [name for _, name, _, _ in Formatter().parse(self.text) if name is not None]
        return tuple(name for name in names if name != LABEL)

    def prompt(self, row: Row) -> str:
        """Return the text before the label word, without a space at its end."""
        return self.text.removesuffix("{label}").rstrip(" ").format_map(row)

    def continuation(self, value: str) -> str:
        """Return the label word as it follows the prompt, with the template's space before it."""
        spaced = self.text.removesuffix("{label}").endswith(" ")
        return f" {self.words[value].strip()}" if spaced else self.words[value]


@dataclass(frozen=True)
class Batch:
    """Some examples as token ids, padded at the end.

    Attributes:
        ids: int64 `[rows, length]`; with label words of one token a row is an example, else an example and a word.
        lengths: tokens of the prompt, int64 `[examples]`.
        labels: index of the true label, int64 `[examples]`.
        rows: tokens of each row.
    """

    ids: Tensor
    lengths: Tensor
    labels: Tensor
    rows: tuple[int, ...]

    def repeat(self, times: int) -> "Batch":
        """Return the batch so many times one below the other, as `BatchedZO` asks for."""
        lengths, labels = self.lengths.repeat(times), self.labels.repeat(times)
        return Batch(self.ids.repeat(times, 1), lengths, labels, self.rows * times)


@dataclass(frozen=True)
class Evaluation:
    """How well a model does.

    Attributes:
        accuracy: share of examples whose true word scores best.
        loss: mean cross-entropy over the label words, in nats.
        examples: how many were seen.
    """

    accuracy: float
    loss: float
    examples: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy (Wilson's)."""
        z, n, p = 1.96, self.examples, self.accuracy
        middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


class Classification:
    """Examples of one template, ready to be scored by a causal language model.

    Args:
        rows: the data.
        template: the prompt and the label words.
        tokenizer: a transformers tokenizer.
        device: where batches go.

    Raises:
        DataError: a field is missing, a row has an unknown label, or a label has no row.
    """

    def __init__(self, rows: Sequence[Row], template: Template, tokenizer: Any, device: torch.device) -> None:
        _check_rows(rows, template)
        self.device = device
        values = list(template.words)
        self.labels = [values.index(row[LABEL]) for row in rows]
        self.prompts: list[list[int]] = tokenizer([template.prompt(row) for row in rows])["input_ids"]
        self.words: list[list[int]] = [
            tokenizer(template.continuation(value), add_special_tokens=False)["input_ids"] for value in values
        ]
        self._single = all(len(word) == 1 for word in self.words)
        self._tokens = torch.tensor([word[0] for word in self.words], device=device)
        if len({tuple(word) for word in self.words}) < len(self.words):
            raise DataError(f"labels: two of {list(template.words.values())} are the same tokens. Choose other words.")

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, examples: Sequence[int]) -> Batch:
        """Return some examples as a batch."""
        prompts = [self.prompts[i] for i in examples]
        rows = prompts if self._single else [prompt + word for prompt in prompts for word in self.words]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = torch.tensor(row)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        labels = torch.tensor([self.labels[i] for i in examples], device=self.device)
        return Batch(ids.to(self.device), lengths, labels, tuple(map(len, rows)))

    def batch_of_step(self, seed: int, step: int, size: int) -> Batch:
        """Return the batch of one training step: a pure function of seed and step, so that a run can go on anywhere.

        Every label has its share of the batch; each goes through its examples in an order drawn anew each epoch.
        """
        chosen: list[int] = []
        kinds = len(self.words)
        for label in range(kinds):
            members = [i for i, other in enumerate(self.labels) if other == label]
            share = (size * (label + 1)) // kinds - (size * label) // kinds
            for position in range(step * share, (step + 1) * share):
                epoch, place = divmod(position, len(members))
                order = np.random.Generator(np.random.PCG64([seed, label, epoch])).permutation(len(members))
                chosen.append(members[order[place]])
        return self.batch(chosen)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all examples, sorted by length so that little is padded."""
        order = sorted(range(len(self)), key=lambda i: len(self.prompts[i]))
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size])

    def scores(self, model: nn.Module, batch: Batch, *, packed: bool = True) -> Tensor:
        """Return the log-probability of every label word, up to a constant a row: float32 `[examples, labels]`.

        Args:
            model: a causal language model.
            batch: some examples.
            packed: whether short rows may share one; not where a hook moves every row in a direction of its own.
        """
        states = hidden_states(model, batch.ids, batch.rows if packed else None)
        if self._single:
            last = states[torch.arange(len(states), device=states.device), batch.lengths - 1]
            return logits_at(model, last, self._tokens)
        return self._long_scores(model, states, batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the label words, a scalar."""
        return nn.functional.cross_entropy(self.scores(model, batch), batch.labels)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy over the label words of each example, float32 `[examples]`; rows are not packed."""
        return nn.functional.cross_entropy(self.scores(model, batch, packed=False), batch.labels, reduction="none")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, batch_size: int = 32) -> Evaluation:
        """Return accuracy and loss over all examples."""
        right, loss = 0, 0.0
        for batch in self.batches(batch_size):
            scores = self.scores(model, batch)
            right += int((scores.argmax(-1) == batch.labels).sum())
            loss += float(nn.functional.cross_entropy(scores, batch.labels, reduction="sum"))
        return Evaluation(right / len(self), loss / len(self), len(self))

    def _long_scores(self, model: nn.Module, states: Tensor, batch: Batch) -> Tensor:
        """Score words of several tokens: the sum of their tokens' log-probabilities."""
        columns = []
        for number, word in enumerate(self.words):
            rows = states[number :: len(self.words)]
            target = torch.tensor(word, device=states.device)
            places = batch.lengths[:, None] - 1 + torch.arange(len(word), device=states.device)
            picked = rows[torch.arange(len(rows), device=states.device)[:, None], places]
            chances = logits_at(model, picked).log_softmax(-1)
            columns.append(chances.gather(-1, target.expand(len(rows), -1)[..., None]).sum((1, 2)))
        return torch.stack(columns, -1)


def _check_rows(rows: Sequence[Row], template: Template) -> None:
    for number, row in enumerate(rows, 1):
        missing = [name for name in (*template.fields, LABEL) if name not in row]
        if missing:
            raise DataError(
                f"row {number} has no field {missing[0]!r}, which the template {template.text!r} needs. "
                f"Its fields are {', '.join(map(repr, row))}."
            )
        if row[LABEL] not in template.words:
            raise DataError(
                f"row {number} has the label {row[LABEL]!r}, expected one of {', '.join(map(repr, template.words))}. "
                "Name a word for it in labels."
            )
    unused = set(template.words) - {row[LABEL] for row in rows}
    if unused:
        raise DataError(f"labels: no row has the label {sorted(unused)[0]!r}. Check labels against the data.")
