"""Generation: a prompt, and a text that is written after it.

Source: MeZO (arXiv 2305.17333, appendix E): trained by the loss of the answer's tokens, measured on what greedy
decoding writes up to the end of the line.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import DataError, one_of, shown
from zoquant.tasks.decoding import write_greedily
from zoquant.tasks.encoding import Encoder, padded
from zoquant.tasks.evaluation import Evaluation, Metric, Sample
from zoquant.tasks.fitting import in_groups
from zoquant.tasks.kinds.sequences import Scored, SequenceExamples, Sequences
from zoquant.tasks.metrics import METRICS
from zoquant.tasks.rows import Row
from zoquant.tasks.sampling import by_length
from zoquant.tasks.template import Prompt

_SAMPLES = 8


@dataclass(frozen=True)
class Questions(Sequences):
    """A batch of prompts with their first answers, whose tokens count.

    Attributes:
        examples: their numbers in the task.
    """

    examples: tuple[int, ...] = ()

    def part(self, some: slice) -> "Questions":
        return replace(super().part(some), examples=self.examples[some])


class Generation(SequenceExamples[Questions]):
    """Prompts to be answered by a causal language model.

    Args:
        rows: the data; the label column of the prompt holds the answer, or a list of answers that are all right.
        prompt: what stands before the answer.
        metric: the primary metric: `"f1"`, `"exact-match"`, `"rouge-l"`, or `"loss"`, which generates nothing.
        max_new_tokens: most tokens of a generated text.
        stop: the text that ends an answer; `""` for the token that ends a text.
        tokenizer, device, max_length, prefix: see `Classification`.

    Raises:
        DataError: a field or an answer is missing, or the metric is unknown.
    """

    def __init__(
        self, rows: Sequence[Row], prompt: Prompt, tokenizer: Any, device: torch.device, *,
        metric: str = "f1", max_new_tokens: int = 50, stop: str = "\n", max_length: int | None = None, prefix: str = "",
    ) -> None:  # fmt: skip
        if metric not in (*METRICS, "loss"):
            raise DataError(f"metric is {metric!r}, expected {one_of([*METRICS, 'loss'], metric)}")
        prompt.check(rows, [prompt.label])
        super().__init__([0] * len(rows), device)
        self.rows, self.metric, self.max_new_tokens, self.stop = rows, metric, max_new_tokens, stop
        self.tokenizer = tokenizer
        self.references = [answers_of(row, prompt.label, number) for number, row in enumerate(rows, 1)]
        self.texts = [prompt.prompt(row) for row in rows]
        encoder = Encoder(tokenizer, max_length, prefix)
        self._ends, self._stop_is_token = _end_tokens(tokenizer, stop)
        end = [] if stop else self._ends[:1]
        texts = [prompt.follow(found[0]) + stop for found in self.references]
        answers = [encoder.continuation(text, prompt.ending) + end for text in texts]
        self.prompts = encoder.prompts(self.texts, [max(max_new_tokens, len(answer)) for answer in answers])
        self.answers = [Scored.after(ids, answer) for ids, answer in zip(self.prompts, answers, strict=True)]

    def batch(self, examples: Sequence[int]) -> Questions:
        found = Questions.of([self.answers[i] for i in examples], self.device)
        return replace(found, examples=tuple(examples))

    @torch.no_grad()
    def generate(self, model: nn.Module, batch: Questions) -> list[str]:
        """Return what a model writes after the prompts of a batch by greedy decoding, up to `stop`."""
        prompts = [self.prompts[i] for i in batch.examples]
        fill = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else (*self._ends, 0)[0]
        ids = padded(prompts, fill, left=True).to(self.device)
        seen = padded([[1] * len(prompt) for prompt in prompts], left=True).to(self.device)
        out = write_greedily(
            model, ids, seen, most=self.max_new_tokens, ends=self._ends, fill=fill,
            stopping=self._stopping(ids.shape[1]),
        )  # fmt: skip
        texts = self._decoded(out[:, ids.shape[1] :])
        return [(text.strip().split(self.stop)[0] if self.stop else text).strip() for text in texts]

    def _decoded(self, written: Tensor) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return texts

    def _stopping(self, start: int) -> Any:
        """Return what ends a text where a stop text of several tokens stands in it, None if a token ends it."""
        if self._stop_is_token:
            return None
        from transformers import StoppingCriteriaList

        def stopped(ids: Tensor, _: Any, **__: Any) -> Tensor:
            return torch.tensor([self.stop in text for text in self._decoded(ids[:, start:])], device=ids.device)

        return StoppingCriteriaList([stopped])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, batch_size: int = 16) -> Evaluation:
        """Return the metric, F1, exact match and loss over all examples, and the first generations."""
        texts = [""] * len(self)
        sums: list[float] = []
        counts: list[float] = []

        def measure(examples: list[int]) -> tuple[list[float], list[str]]:
            batch = self.batch(examples)
            lost = (-batch.log_probs(model)).tolist()
            return lost, [""] * len(examples) if self.metric == "loss" else self.generate(model, batch)

        groups = by_length([len(prompt) for prompt in self.prompts], batch_size)
        for examples, (lost, written) in in_groups(groups, measure):
            sums += lost
            counts += [float(self.answers[i].count) for i in examples]
            for example, text in zip(examples, written, strict=True):
                texts[example] = text
        loss = {"loss": Metric.mean(sums, counts)}
        if self.metric == "loss":
            return Evaluation("loss", loss, len(self))
        pairs = list(zip(texts, self.references, strict=True))
        names = dict.fromkeys((self.metric, "f1", "exact-match"))
        scores = {name: [METRICS[name](text, answers) for text, answers in pairs] for name in names}
        metrics = {name: Metric.share(values) for name, values in scores.items()}
        seen = zip(self.texts[:_SAMPLES], pairs, scores[self.metric], strict=False)
        samples = tuple(Sample(prompt, text, tuple(answers), score) for prompt, (text, answers), score in seen)
        return Evaluation(self.metric, metrics | loss, len(self), samples)


def answers_of(row: Row, column: str, number: int) -> list[str]:
    """Return the answers of a row.

    Raises:
        DataError: there is none, or one is no text.
    """
    value = row[column]
    answers = value if isinstance(value, list) else [value]
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise DataError(
            f"row {number}: the answer is {shown(value)}, expected a text or a list of texts in column {column!r}. "
            "Leave the row out, or name another column: --label-column."
        )
    return answers


def _end_tokens(tokenizer: Any, stop: str) -> tuple[list[int], bool]:
    """Return the tokens that end a text, and whether they are all that does: a stop text may be several tokens."""
    ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    stops = tokenizer(stop, add_special_tokens=False)["input_ids"] if stop else []
    if not ids and not stops:
        raise DataError(
            "the tokenizer has no token that ends a text, and no stop text is given. Set --stop, or stop in a config."
        )
    return (ids, False) if len(stops) > 1 else (ids + stops, True)
