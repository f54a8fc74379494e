"""The tasks of MeZO by name: where the data lie, and the prompts and words of its experiments.

Source: MeZO (arXiv 2305.17333, tables 13 and 14) and its repository princeton-nlp/MeZO at 552cb1b:
`large_models/templates.py`, `large_models/tasks.py` and `medium_models/run_fewshot.sh`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zoquant.errors import DataError, shown
from zoquant.tasks.rows import Row

Kind = Literal["classification", "choice", "generation", "masked", "text", "chat"]

_YES_NO = {"0": "Yes", "1": "No"}
_NO_YES = {"0": "No", "1": "Yes"}
_STARS = {"0": "terrible", "1": "bad", "2": "okay", "3": "good", "4": "great"}
_INFERENCE = {"0": "Yes", "1": "Maybe", "2": "No"}
_QUESTIONS = {"0": "Expression", "1": "Entity", "2": "Description", "3": "Human", "4": "Location", "5": "Number"}


@dataclass(frozen=True)
class Definition:
    """One task.

    Attributes:
        kind: what kind of task it is.
        hub: name of the data set on the Hugging Face Hub.
        config: its configuration there, and the folder of its files.
        columns: the columns that its rows have, as far as they are needed.
        template: the prompt.
        words: the word for each label value, of tasks with fixed labels.
        label: the column with the answer, after `derive`.
        derive: makes the columns that the template needs from those of the data; None leaves out the row.
        sfc: the prompt without the input, for `--sfc`.
        test: the split that the papers test on, since that of the benchmark has no labels.
        dev: rows of training data that the papers keep for choices.
    """

    kind: Kind
    hub: str
    config: str | None
    columns: tuple[str, ...]
    template: str
    words: Mapping[str, str] | None = None
    label: str = "label"
    derive: Callable[[Row], Row | None] = lambda row: row
    sfc: str | None = "{label}"
    test: str = "validation"
    dev: int = 500

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows of the data set as the template wants them.

        Raises:
            DataError: a row lacks a column, or a column holds something else than it does there.
        """
        found = []
        for number, row in enumerate(rows, 1):
            missing = [name for name in self.columns if name not in row]
            if missing:
                raise DataError(
                    f"row {number} has no field {missing[0]!r}, which {self.hub} has. Its fields are "
                    f"{', '.join(map(repr, row))}. Pass the files of that data set, or give a template of your own."
                )
            try:
                derived = self.derive(row)
            except (LookupError, TypeError, AttributeError) as error:
                has = ", ".join(f"{name}: {shown(row[name])}" for name in self.columns)
                raise DataError(
                    f"row {number}: expected fields as {self.hub} has them, got {has:.300}. Pass the files of that "
                    "data set, or another task and a template of your own."
                ) from error
            if derived is not None:
                found.append(derived)
        return found


def _sst2(row: Row) -> Row:
    return row | {"sentence": row["sentence"].strip()}


def _boolq(row: Row) -> Row:
    question = row["question"] if row["question"].endswith("?") else f"{row['question']}?"
    return row | {"question": question[0].upper() + question[1:]}


def _wsc(row: Row) -> Row:
    return row | {"pronoun": row["span2_text"].lower()}


def _copa(row: Row) -> Row:
    conjunction = {"effect": "so", "cause": "because"}[row["question"]]
    options = [" ".join([_lowered(words[0]), *words[1:]]) for words in (row[f"choice{i}"].split(" ") for i in (1, 2))]
    return row | {"premise": row["premise"].rstrip().removesuffix("."), "conjunction": conjunction, "options": options}


def _lowered(word: str) -> str:
    return word if word == "I" else word.lower()


def _record(row: Row) -> Row:
    passage = row["passage"].replace("@highlight\n", "- ")
    options = [row["query"].replace("@placeholder", entity) for entity in _list(row["entities"])]
    right = [row["query"].replace("@placeholder", answer) for answer in _list(row["answers"])]
    return row | {"passage": passage, "options": options, "label": right}


def _list(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return value


def _squad(row: Row) -> Row:
    return row | {"question": row["question"].strip(), "label": row["answers"]["text"]}


def _drop(row: Row) -> Row:
    return row | {"question": row["question"].strip(), "label": row["answers_spans"]["spans"]}


def _pair(row: Row) -> Row | None:
    """Return a pair of sentences: the first without its last mark, the second with a small letter; -1 is no label."""
    if row["label"] == "-1":
        return None
    premise, hypothesis = row["premise"].strip(), row["hypothesis"].strip()
    return row | {"premise": premise[:-1], "hypothesis": hypothesis[:1].lower() + hypothesis[1:]}


_BOOLQ = {"True": "Yes", "False": "No"}
_GLUE, _SUPER = "nyu-mll/glue", "aps/super_glue"
_CLOZE_OF_PAIR = "{premise}? {label}, {hypothesis}"

CATALOG: dict[str, Definition] = {
    "sst2": Definition(
        "classification", _GLUE, "sst2", ("sentence", "label"), "{sentence} It was {label}",
        {"0": "terrible", "1": "great"}, derive=_sst2, sfc="It was {label}",
    ),
    "rte": Definition(
        "classification", _SUPER, "rte", ("premise", "hypothesis", "label"),
        '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n{label}', _YES_NO,
    ),
    "cb": Definition(
        "classification", _SUPER, "cb", ("premise", "hypothesis", "label"),
        'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n{label}',
        {"0": "Yes", "1": "No", "2": "Maybe"}, dev=100,
    ),
    "boolq": Definition(
        "classification", "google/boolq", None, ("question", "passage", "answer"), "{passage} {question}\n{label}",
        _BOOLQ, label="answer", derive=_boolq,
    ),
    "wsc": Definition(
        "classification", _SUPER, "wsc.fixed", ("text", "span1_text", "span2_text", "label"),
        '{text}\nIn the previous sentence, does the pronoun "{pronoun}" refer to {span1_text}? Yes or No?\n{label}',
        _NO_YES, derive=_wsc,
    ),
    "wic": Definition(
        "classification", _SUPER, "wic", ("word", "sentence1", "sentence2", "label"),
        'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n'
        "{label}",
        _NO_YES,
    ),
    "multirc": Definition(
        "classification", _SUPER, "multirc", ("paragraph", "question", "answer", "label"),
        '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n{label}',
        _NO_YES,
    ),
    "copa": Definition(
        "choice", _SUPER, "copa", ("premise", "choice1", "choice2", "question", "label"),
        "{premise} {conjunction} {label}", derive=_copa, sfc="{conjunction} {label}", dev=100,
    ),
    "record": Definition(
        "choice", _SUPER, "record", ("passage", "query", "entities", "answers"), "{passage}\n- {label}",
        derive=_record, sfc="- {label}",
    ),
    "squad": Definition(
        "generation", "rajpurkar/squad", None, ("title", "context", "question", "answers"),
        "Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer: {label}", derive=_squad, sfc=None,
    ),
    "drop": Definition(
        "generation", "ucinlp/drop", None, ("passage", "question", "answers_spans"),
        "Passage: {passage}\nQuestion: {question}\nAnswer: {label}", derive=_drop, sfc=None,
    ),
    "sst5": Definition(
        "masked", "SetFit/sst5", None, ("text", "label"), "{text} It was {label}.", _STARS, sfc=None,
        test="test",
    ),
    "snli": Definition(
        "masked", "stanfordnlp/snli", None, ("premise", "hypothesis", "label"), _CLOZE_OF_PAIR, _INFERENCE,
        derive=_pair, sfc=None, test="test",
    ),
    "mnli": Definition(
        "masked", _GLUE, "mnli", ("premise", "hypothesis", "label"), _CLOZE_OF_PAIR, _INFERENCE,
        derive=_pair, sfc=None, test="validation_matched",
    ),
    "trec": Definition(
        "masked", "CogComp/trec", None, ("text", "coarse_label"), "{label}: {text}", _QUESTIONS, label="coarse_label",
        sfc=None, test="test",
    ),
}  # fmt: skip
"""The tasks by name. Causal models do the first eleven, masked ones the last four."""
