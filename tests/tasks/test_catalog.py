"""MeZO's tasks on rows in the true schema of their data sets, and the prompts that its code makes of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from zoquant.errors import DataError
from zoquant.tasks import Classification, Cloze, Generation, MultipleChoice, Prompt, TaskSettings
from zoquant.tasks.catalog import CATALOG
from zoquant.tasks.rows import Row, read_rows

CPU = torch.device("cpu")
DATA = Path(__file__).parent / "data"


def rows(name: str) -> list[Row]:
    return read_rows(DATA / name, split="train")


PROMPTS = {
    "sst2": ("hide new secretions It was", " terrible"),
    "rte": ('No Weapons Found.\nDoes this mean that "Weapons of Mass Destruction Found." is true? Yes or No?\n', "No"),
    "cb": ('Suppose It was complex. Can we infer that "the language was peeled down"? Yes, No, or Maybe?\n', "Yes"),
    "boolq": ("Persian is spoken in Iran. Do iran and afghanistan speak the same language?\n", "Yes"),
    "wsc": (
        "Mark told Pete many lies about himself. He was honest.\n"
        'In the previous sentence, does the pronoun "he" refer to Mark? Yes or No?\n',
        "No",
    ),
    "wic": (
        'Does the word "place" have the same meaning in these two sentences? Yes, No?\n'
        "Do you want to come over to my place later?\n"
        "A political system with no place for the less prominent groups.\n",
        "No",
    ),
    "multirc": (
        "Animated history of the US.\nQuestion: Was it animated?\n"
        'I found this answer "Yes, of course". Is that correct? Yes or No?\n',
        "Yes",
    ),
    "copa": ("My body cast a shadow over the grass because", " the sun was rising."),
    "record": ("Rome fell.\n- Goths came\n- Rome burned\n-", " Experts say Goths did it."),
    "squad": (
        "Title: Tower\nContext: The tower stands in Paris.\nQuestion: Where does it stand?\nAnswer:", " Paris\n"
    ),
    "drop": ("Passage: Hoping to rebound, they won 3 to 1.\nQuestion: How many goals?\nAnswer:", " 3\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_and_answers_are_those_of_mezo(name: str, loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    settings = TaskSettings(name, max_new_tokens=4)
    row, prompt = settings.rows(rows(name))[0], settings._prompt()
    assert isinstance(prompt, Prompt)
    text, answer = PROMPTS[name]
    assert prompt.prompt(row) == text
    task = settings.build(rows(name), model, tokenizer, CPU)
    decode = tokenizer.decode
    if isinstance(task, Classification):
        assert decode(task.words[task.labels[0]]) == answer
    elif isinstance(task, MultipleChoice):
        option = task.options[0][task.right[0][0]]
        assert decode([i for i, counts in zip(option.ids, option.scored, strict=True) if counts]) == answer
    else:
        assert isinstance(task, Generation)
        chosen = task.answers[0]
        assert decode([i for i, counts in zip(chosen.ids, chosen.scored, strict=True) if counts]) == answer
    assert task.evaluate(model).examples == len(settings.rows(rows(name)))


@pytest.mark.parametrize(
    ("name", "before", "after", "word"),
    [
        ("sst5", "a stirring , funny film It was ", ".", "great"),
        ("snli", "A person on a horse jumps? ", ", a person is outdoors", "Yes"),
        ("mnli", "Conceptually cream skimming has two dimensions? ", ", product is one of them", "Maybe"),
        ("trec", "", ": How did serfdom develop ?", "Description"),
    ],
)
def test_clozes_are_those_of_mezo(name: str, before: str, after: str, word: str) -> None:
    settings = TaskSettings(name)
    cloze, row = settings._prompt(), settings.rows(rows(name))[0]
    assert isinstance(cloze, Cloze)
    assert cloze.sides(row) == (before, after)
    assert cloze.words[row[cloze.label]] == word


def test_rows_without_a_label_are_left_out() -> None:
    assert [row["label"] for row in rows("snli")] == ["0", "1", "2", "-1"]
    assert len(TaskSettings("snli").rows(rows("snli"))) == 3


def test_record_counts_every_right_entity(loaded: tuple[Any, Any]) -> None:
    task = TaskSettings("record").build(rows("record"), *loaded, CPU)
    assert isinstance(task, MultipleChoice)
    assert task.right == [[0, 2], [1]]


@pytest.mark.parametrize("name", CATALOG)
def test_a_missing_column_is_named(name: str) -> None:
    wanted = CATALOG[name].columns[-1]
    bad = [{key: value for key, value in row.items() if key != wanted} for row in rows(name)]
    with pytest.raises(DataError, match=f"row 1 has no field '{wanted}', which .*{CATALOG[name].hub}"):
        TaskSettings(name).rows(bad)


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("copa", "question", "why"), ("record", "entities", "Ann"), ("record", "answers", {"text": ["Ann"]}),
        ("squad", "answers", "Ann"), ("drop", "answers_spans", ["7"]), ("wsc", "span2_text", ["it"]),
        ("snli", "premise", ["a"]), ("boolq", "question", {}), ("sst2", "sentence", []),
    ],
)  # fmt: skip
def test_a_column_that_holds_something_else_is_named(name: str, column: str, value: Any) -> None:
    row = rows(name)[0] | {column: value}
    with pytest.raises(DataError, match=rf"row 1: expected fields as {CATALOG[name].hub} has them, got .*{column}: "):
        TaskSettings(name).rows([row])


@pytest.mark.parametrize("name", ["copa", "record", "sst2", "cb"])
def test_evaluation_with_surface_form_correction(name: str, loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    plain, corrected = (TaskSettings(name, sfc=on).build(rows(name), model, tokenizer, CPU) for on in (False, True))
    assert plain.empty == []  # type: ignore[attr-defined]
    assert len(corrected.empty) == len(corrected)  # type: ignore[attr-defined]
    assert 0 <= corrected.evaluate(model).accuracy <= 1
