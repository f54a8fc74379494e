"""Templates: how a row of data becomes a prompt, and what follows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter

from zoquant.errors import DataError, shown
from zoquant.tasks.rows import Row

LABEL = "{label}"
NO_ROW = "the data hold no row, expected at least one. Is the split empty?"


@dataclass(frozen=True)
class Fielded:
    """A text with fields in braces, of which `{label}` is the place of the answer.

    Attributes:
        text: e.g. `"Question: {question} Answer: {label}"`.
        label: name of the column that holds the answer.
    """

    text: str
    label: str = field(default="label", kw_only=True)

    def __post_init__(self) -> None:
        _refuse_formats(self.text)
        if {LABEL[1:-1], self.label} & set(self.fields):
            raise DataError(
                f"template {self.text!r:.200} shows the answer: it holds {{label}} or the column {self.label!r} beside "
                "the place of the answer. Take that field out."
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that a row must have, without the place of the answer."""
        return tuple(_fields(self.text.replace(LABEL, "", 1)))

    def check(self, rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
        """See that every row has the fields.

        Raises:
            DataError: there is no row, or one lacks a field, or a field that is shown is no text.
        """
        if not rows:
            raise DataError(NO_ROW)
        fields = self.fields
        for number, row in enumerate(rows, 1):
            missing = [name for name in (*fields, *columns) if name not in row]
            if missing:
                raise DataError(f"row {number} has no field {missing[0]!r}{self._wanted(missing[0], row)}")
            parts = [name for name in fields if isinstance(row[name], list | dict)]
            if parts:
                raise DataError(
                    f"row {number}: the field {parts[0]!r} is {shown(row[parts[0]])}, but the template "
                    f"{self.text!r:.200} shows it: expected a text. Write one into a column of its own."
                )

    def _wanted(self, name: str, row: Row) -> str:
        """Return what a missing field is for, which there are, and what to do."""
        has = f"Its fields are {', '.join(map(repr, row))}."
        if name == self.label:
            return f", which holds the answer. {has} Name the one that does: --label-column, label_column in a config."
        if name in self.fields:
            return f", which the template {self.text!r:.200} needs. {has} Name one of these, or rename the column."
        return f", which holds options. {has} Name the ones that do: --options, options in a config."


@dataclass(frozen=True)
class Prompt(Fielded):
    """A text that ends in `{label}`."""

    def __post_init__(self) -> None:
        if not self.text.endswith(LABEL):
            raise DataError(
                f"template {self.text!r} does not end in {{label}}. Write e.g. '{{sentence}} It was {{label}}'."
            )
        super().__post_init__()

    @property
    def ending(self) -> str:
        """What stands between the last field and the answer in every prompt, without a space at its end."""
        ending = ""
        for literal, name, *_ in Formatter().parse(self.text.removesuffix(LABEL).rstrip(" ")):
            ending = ending + literal if name is None else ""
        return ending

    def prompt(self, row: Row) -> str:
        """Return the text before the answer, without a space at its end."""
        return self.text.removesuffix(LABEL).rstrip(" ").format_map(row)

    def follow(self, answer: str) -> str:
        """Return an answer as it follows the prompt, with the template's space before it."""
        return f" {answer.strip()}" if self.text.removesuffix(LABEL).endswith(" ") else answer


@dataclass(frozen=True)
class Template(Prompt):
    """A prompt, and the word that each label value stands for.

    Attributes:
        words: the label's words by its value in the data, e.g. `{"0": "terrible", "1": "great"}`.
    """

    words: Mapping[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words(self.words)

    def continuation(self, value: str) -> str:
        """Return the word of a label as it follows the prompt."""
        return self.follow(self.words[value])


def _fields(text: str) -> list[str]:
    """Return the fields of a text in their order."""
    return [name for _, name, _, _ in Formatter().parse(text) if name is not None]


def _refuse_formats(text: str) -> None:
    """Refuse what Python's formats can do beyond a name: a field a billion letters wide, parts of an object."""
    try:
        fields = [field for field in Formatter().parse(text) if field[1] is not None]
    except ValueError as error:
        raise DataError(f"template {text!r:.200}: {error}. Write {{{{ for a brace.") from error
    for _, name, width, conversion in fields:
        if width or conversion:
            raise DataError(f"template {text!r:.200}: the field {name!r} has a format, expected a name alone.")
        if not name or name.isdecimal() or "." in name or "[" in name:
            raise DataError(
                f"template {text!r:.200}: the field {name!r} is no name of a column: expected one that is no number "
                "and has no dot or bracket. Rename the column."
            )


def parse_words(labels: str) -> dict[str, str]:
    """Return the words by value of `"0=terrible,1=great"`.

    Raises:
        DataError: a part is not of the form `value=word`, or a value comes twice.
    """
    words: dict[str, str] = {}
    for part in labels.split(","):
        value, equals, word = part.partition("=")
        if not equals or not word.strip() or value.strip() in words:
            raise DataError(f"labels: {part!r} is not of the form value=word. Write e.g. '0=terrible,1=great'.")
        words[value.strip()] = word
    return words


def check_words(words: Mapping[str, str]) -> None:
    """See that there is something to choose from."""
    if len(words) < 2:
        raise DataError(f"labels: got {len(words)}, expected at least two, e.g. '0=terrible,1=great'.")


def refuse_unused_words(rows: Sequence[Row], words: Mapping[str, str], label: str) -> None:
    """See that rows to learn from have every label."""
    unused = [value for value in words if all(row[label] != value for row in rows)]
    if unused:
        raise DataError(f"labels: no row has the label {unused[0]!r}. Check labels against the data.")


def label_numbers(rows: Sequence[Row], words: Mapping[str, str], label: str) -> list[int]:
    """Return the index of each row's label among the words.

    Raises:
        DataError: a row has a label without a word.
    """
    values = list(words)
    for number, row in enumerate(rows, 1):
        if not isinstance(row[label], str) or row[label] not in words:
            raise DataError(
                f"row {number} has the label {shown(row[label])}, expected one of {', '.join(map(repr, words))}. "
                "Name a word for it in labels."
            )
    return [values.index(row[label]) for row in rows]
