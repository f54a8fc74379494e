"""What decides a task, as plain data: settings in, a task out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import torch
from torch import nn

from zoquant.errors import DataError, one_of
from zoquant.tasks.catalog import CATALOG, Definition, Kind
from zoquant.tasks.encoding import longest
from zoquant.tasks.kinds.choice import MultipleChoice, options_of, right_options
from zoquant.tasks.kinds.classification import Classification
from zoquant.tasks.kinds.generation import Generation, answers_of
from zoquant.tasks.kinds.language import LanguageModeling, chat_sequences, check_chats, check_texts, text_sequences
from zoquant.tasks.kinds.masked import Cloze, MaskedClassification
from zoquant.tasks.rows import Row
from zoquant.tasks.rows.naming import naming
from zoquant.tasks.task import Task
from zoquant.tasks.template import LABEL, Prompt, Template, label_numbers, refuse_unused_words

_BETWEEN = "\n\n"


EXAMPLES = {
    "model": "model.gguf",
    "data": "--data rows.jsonl",
    "template": "--template '{sentence} It was {label}'",
    "labels": "--labels '0=terrible,1=great'",
    "out": "--out run",
}
"""What may be written on the command line for that which must be given."""


def lacking(task: str, template: object, labels: object) -> list[str]:
    """Return which of template and labels a task needs and was not given; of no known task it is none."""
    if task not in (*get_args(Kind), *CATALOG):
        return []
    known = CATALOG.get(task)
    kind = known.kind if known else task
    needed = {
        "template": kind not in ("text", "chat") and not template and not (known and known.template),
        "labels": kind in ("classification", "masked") and labels is None and not (known and known.words),
    }
    return [name for name, lacks in needed.items() if lacks]


def told_missing(names: Sequence[str]) -> str:
    """Return that these keys are not given, and what to write."""
    return f"not given: {', '.join(names)}. Write e.g. {' '.join(EXAMPLES[name] for name in names)}"


@dataclass(frozen=True)
class TaskSettings:
    """What decides a task, together with model and data. The text beside a field says what it means."""

    task: Annotated[str, f"classification, choice, generation, masked, text, chat, or one of {', '.join(CATALOG)}."] = (
        "classification"
    )
    template: Annotated[
        str | None,
        "Prompt with columns in braces, {label} for the answer: '{text} It was {label}'. Not given: that of the named "
        "task. Of text and chat: the column, as '{text}'.",
    ] = None
    labels: Annotated[
        Mapping[str, str] | None, "The word for each label value: '0=terrible,1=great'. Not given: of the named task."
    ] = None
    label_column: Annotated[str | None, "The column that fills {label}. Not given: label, or of the named task."] = None
    options: Annotated[tuple[str, ...], "Choice: the column with the list of options, or a column for each: a,b."] = (
        "options",
    )
    metric: Annotated[str, "Generation: f1, exact-match, rouge-l, or loss to generate nothing."] = "f1"
    max_new_tokens: Annotated[int, "Generation: most tokens of an answer."] = 50
    stop: Annotated[str, "Generation: the text that ends an answer; '' for the end of the text."] = "\n"
    sfc: Annotated[
        bool, "Surface-form correction: evaluation takes off what a word or option scores without the input."
    ] = False

    def __post_init__(self) -> None:
        if self.task not in (*get_args(Kind), *CATALOG):
            raise DataError(f"task is {self.task!r}, expected {one_of([*get_args(Kind), *CATALOG], self.task)}")
        if missing := lacking(self.task, self.template, self.labels):
            raise DataError(f"task {self.task}: {told_missing(missing)}")
        if self.sfc and self.kind not in ("classification", "choice"):
            raise DataError(
                f"task {self.task}: sfc is for classification and choice, not for {self.kind}. Leave it out."
            )
        if self.max_new_tokens < 1:
            raise DataError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1.")
        self._prompt()

    @property
    def definition(self) -> Definition | None:
        """The named task, None for a kind."""
        return CATALOG.get(self.task)

    @property
    def kind(self) -> str:
        """The kind of the task."""
        return self.definition.kind if self.definition else self.task

    @property
    def label(self) -> str:
        """The column that holds the label or the answer."""
        return self.label_column or (self.definition.label if self.definition else "label")

    @property
    def has_labels(self) -> bool:
        """Whether each row has one of a few labels."""
        return self.kind in ("classification", "masked")

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows of data as the template wants them.

        Raises:
            DataError: a row lacks a column of the named task.
        """
        return self.definition.rows(rows) if self.definition else list(rows)

    def check(self, rows: Sequence[Row], *, learned: bool = False, shots: int = 0) -> None:
        """See that data and settings fit together, as far as that can be known without the model.

        Args:
            rows: the data, as they were read.
            learned: whether they are to be learned from: then every label needs a row.
            shots: how many worked examples stand before every prompt.

        Raises:
            DataError: they do not fit; the row and the field are named.
        """
        if shots and self.kind in ("masked", "text", "chat"):
            raise DataError(
                f"task {self.task}: worked examples stand before a prompt of a causal model, and {self.kind} has none. "
                "Leave --shots out."
            )
        found, prompt = self.rows(rows), self._prompt()
        if isinstance(prompt, str):
            (check_texts if self.kind == "text" else check_chats)(found, prompt)
            return
        prompt.check(found, [prompt.label, *(self.options if self.kind == "choice" else ())])
        if isinstance(prompt, Cloze | Template):
            label_numbers(found, prompt.words, prompt.label)
            if learned:
                refuse_unused_words(found, prompt.words, prompt.label)
            return
        for number, row in enumerate(found, 1):
            self._answer(prompt, row, number)

    def build(
        self, rows: Sequence[Row], model: nn.Module, tokenizer: Any, device: torch.device, *,
        shots: Sequence[Row] = (), balanced: bool = True,
    ) -> Task[Any]:  # fmt: skip
        """Return the task of some data.

        Args:
            rows: the data, as they were read.
            model: the model that it is for; it says how long a text may be.
            tokenizer: its tokenizer.
            device: where batches go.
            shots: rows that stand as worked examples before every prompt.
            balanced: whether every label has its share of a batch of training, where there are labels.

        Raises:
            DataError: data and settings do not fit together; the row and the field are named.
        """
        self.check(rows, shots=len(shots))
        if shots:
            with naming("worked examples"):
                self.check(shots)
        found, length, prompt = self.rows(rows), longest(model), self._prompt()
        if isinstance(prompt, Cloze):
            return MaskedClassification(found, prompt, tokenizer, device, max_length=length, balanced=balanced)
        if not isinstance(prompt, Prompt):
            make = text_sequences if self.kind == "text" else chat_sequences
            return LanguageModeling(make(found, prompt, tokenizer, length), device)
        common: dict[str, Any] = {"max_length": length, "prefix": self.worked(prompt, self.rows(shots))}
        if self.kind == "generation":
            return Generation(
                found, prompt, tokenizer, device, metric=self.metric, max_new_tokens=self.max_new_tokens,
                stop=self.stop, **common,
            )  # fmt: skip
        common["sfc"] = self._without_input(prompt) if self.sfc else None
        if isinstance(prompt, Template):
            return Classification(found, prompt, tokenizer, device, balanced=balanced, **common)
        return MultipleChoice(found, prompt, self.options, tokenizer, device, **common)

    def worked(self, prompt: Prompt, rows: Sequence[Row]) -> str:
        """Return worked examples as one text, with an empty line after each."""
        answers = [self._answer(prompt, row, number) for number, row in enumerate(rows, 1)]
        texts = [prompt.prompt(row) + prompt.follow(answer) for row, answer in zip(rows, answers, strict=True)]
        return "".join(text.strip() + _BETWEEN for text in texts)

    @property
    def _text(self) -> str | None:
        return self.template or (self.definition.template if self.definition else None)

    @property
    def _words(self) -> Mapping[str, str] | None:
        return self.labels or (self.definition.words if self.definition else None)

    def _prompt(self) -> Prompt | Cloze | str:
        """Return the prompt, or the column of texts and chats."""
        text = self._text or ""
        if self.kind in ("text", "chat"):
            return text.strip("{}") or {"text": "text", "chat": "messages"}[self.kind]
        if self.kind == "masked":
            return Cloze(text, self._words or {}, label=self.label)
        if self.kind == "classification":
            return Template(text, self._words or {}, label=self.label)
        return Prompt(text, label=self.label)

    def _without_input(self, prompt: Prompt) -> str:
        """Return the prompt without the input: that of the named task, or the template with its fields left empty."""
        if self.definition is not None and self.template is None:
            return self.definition.sfc or LABEL
        spaced = prompt.text.removesuffix(LABEL).endswith(" ")
        bare = prompt.text.removesuffix(LABEL).format_map(dict.fromkeys(prompt.fields, "")).strip(" ")
        return bare.replace("{", "{{").replace("}", "}}") + (" " if spaced and bare else "") + LABEL

    def _answer(self, prompt: Prompt, row: Row, number: int) -> str:
        """Return what is right after the prompt of a row."""
        if isinstance(prompt, Template):
            return prompt.words[row[prompt.label]]
        if self.kind == "generation":
            return answers_of(row, prompt.label, number)[0]
        options = options_of(row, self.options, number)
        return options[right_options(row[prompt.label], options, number)[0]]
