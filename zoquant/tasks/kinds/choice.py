"""Multiple choice: every row brings options of its own, and the likeliest one is the answer.

Source: MeZO (arXiv 2305.17333, appendix E): the loss is that of the right option's tokens; the answer is the option
with the highest mean log-probability a token. With surface-form correction sums are compared
(`large_models/run.py` of its repository).
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from zoquant.errors import DataError, shown
from zoquant.tasks.encoding import Encoder
from zoquant.tasks.evaluation import Evaluation, Metric
from zoquant.tasks.kinds.sequences import Scored, SequenceExamples, Sequences, log_probs_of
from zoquant.tasks.rows import Row
from zoquant.tasks.template import Prompt


class MultipleChoice(SequenceExamples[Sequences]):
    """Examples with options.

    Args:
        prompt: what stands before the options; its label column holds the number of the right option, from 0, or its
            text, or a list of texts that are all right.
        options: the columns that hold the options: one with a list, or one for each.
        sfc: a template without the input, e.g. `"Answer: {label}"`: what an option scores after it is taken
            off. None for none.
        rows, tokenizer, device, max_length, prefix: see `Classification`.

    Raises:
        DataError: a field is missing, a row has fewer than two options, or no option is the right one.
    """

    def __init__(
        self, rows: Sequence[Row], prompt: Prompt, options: Sequence[str], tokenizer: Any, device: torch.device, *,
        max_length: int | None = None, prefix: str = "", sfc: str | None = None,
    ) -> None:  # fmt: skip
        prompt.check(rows, [prompt.label, *options])
        super().__init__([0] * len(rows), device)
        texts = [options_of(row, options, number) for number, row in enumerate(rows, 1)]
        self.right = [
            right_options(row[prompt.label], found, number)
            for number, (row, found) in enumerate(zip(rows, texts, strict=True), 1)
        ]
        encoder = Encoder(tokenizer, max_length, prefix)
        tokens = [[encoder.continuation(prompt.follow(text), prompt.ending) for text in found] for found in texts]
        self.options = _sequences(encoder, [prompt.prompt(row) for row in rows], tokens)
        self.empty: list[list[Scored]] = []
        if sfc is not None:
            free = Prompt(sfc)
            free.check(rows)
            self.empty = _sequences(Encoder(tokenizer, max_length), [free.prompt(row) for row in rows], tokens)

    def batch(self, examples: Sequence[int]) -> Sequences:
        """Return the right options of some examples."""
        return Sequences.of([self.options[i][self.right[i][0]] for i in examples], self.device)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, batch_size: int = 32) -> Evaluation:
        """Return accuracy, and the loss of the right options."""
        sums = self._sums(model, self.options, batch_size)
        free = self._sums(model, self.empty, batch_size) if self.empty else None
        right, losses, counts = [], [], []
        for number, options in enumerate(self.options):
            if free is None:
                scores = [total / option.count for total, option in zip(sums[number], options, strict=True)]
            else:
                scores = [total - other for total, other in zip(sums[number], free[number], strict=True)]
            first = self.right[number][0]
            known = not any(map(math.isnan, scores))
            right.append(scores.index(max(scores)) in self.right[number] if known else math.nan)
            losses.append(-sums[number][first])
            counts.append(float(options[first].count))
        metrics = {"accuracy": Metric.share(right), "loss": Metric.mean(losses, counts)}
        return Evaluation("accuracy", metrics, len(self))

    def _sums(self, model: nn.Module, examples: Sequence[Sequence[Scored]], size: int) -> list[list[float]]:
        """Return the log-probability of every option."""
        sums = log_probs_of(model, [option for options in examples for option in options], self.device, size)
        ends = list(accumulate(map(len, examples)))
        return [sums[end - len(options) : end] for end, options in zip(ends, examples, strict=True)]


def options_of(row: Row, columns: Sequence[str], number: int) -> list[str]:
    """Return the options of a row.

    Raises:
        DataError: there are fewer than two, or they are no texts.
    """
    value = row[columns[0]]
    options = value if len(columns) == 1 else [row[column] for column in columns]
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(option, str) for option in options):
        raise DataError(
            f"row {number}: options are {shown(options)}, expected a list of two texts or more in column "
            f"{columns[0]!r}, or a column for each: --options choice1,choice2."
        )
    return options


def right_options(label: str | list[str], options: Sequence[str], number: int) -> list[int]:
    """Return the numbers of the right options; those of one text are all right.

    Raises:
        DataError: the label names no option, or can be read as a number and as a text that differ.
    """
    texts = label if isinstance(label, list) else [label]
    index = int(label) if isinstance(label, str) and label.isdecimal() and int(label) < len(options) else None
    found = [place for text in texts for place, option in enumerate(options) if option == text]
    if index is not None and found and index not in found:
        raise DataError(
            f"row {number}: the label {label!r} is the text of option {found[0]} and the number of option {index}. "
            "Write the label in words."
        )
    if index is not None:
        return [place for place, option in enumerate(options) if option == options[index]]
    if not found:
        raise DataError(
            f"row {number}: the label {shown(label)} is none of the options {shown(list(options))}. Name the "
            "column that holds its text or its number, from 0: --label-column."
        )
    return found


def _sequences(encoder: Encoder, prompts: list[str], tokens: list[list[list[int]]]) -> list[list[Scored]]:
    ids = encoder.prompts(prompts, [max(map(len, options)) for options in tokens])
    return [[Scored.after(prompt, option) for option in options] for prompt, options in zip(ids, tokens, strict=True)]
