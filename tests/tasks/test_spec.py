"""Settings of tasks: what they build, and what they refuse."""

from typing import Any

import pytest
import torch

from tests.tiny import LABELS, ROWS, TEMPLATE
from zoquant.errors import DataError
from zoquant.tasks import Classification, Generation, LanguageModeling, MultipleChoice, TaskSettings
from zoquant.tasks.template import parse_words

CPU = torch.device("cpu")
WORDS = parse_words(LABELS)


@pytest.mark.parametrize(
    ("settings", "row", "kind"),
    [
        (TaskSettings(template=TEMPLATE, labels=WORDS), {"sentence": "x"}, Classification),
        (
            TaskSettings("choice", "{a} is {label}", label_column="right", options=("b", "c")),
            {"a": "x", "b": "good", "c": "bad", "right": "1"}, MultipleChoice,
        ),
        (TaskSettings("generation", "{a}\n{label}", label_column="out"), {"a": "x", "out": "good"}, Generation),
        (TaskSettings("text"), {"text": "a text"}, LanguageModeling),
        (TaskSettings("text", "{body}"), {"body": "a text"}, LanguageModeling),
    ],
)  # fmt: skip
def test_every_kind_is_built(settings: TaskSettings, row: dict[str, Any], kind: type, loaded: tuple[Any, Any]) -> None:
    task = settings.build([row | {"label": "0"}, row | {"label": "1"}], *loaded, CPU)
    assert isinstance(task, kind)
    assert len(task) == 2
    assert torch.isfinite(torch.as_tensor(task.loss(loaded[0], task.batch_of_step(0, 0, 2))))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "sst3"}, "task is 'sst3', expected one of classification, choice"),
        ({"template": TEMPLATE}, "task classification: not given: labels. Write e.g. --labels"),
        ({"labels": WORDS}, "not given: template."),
        ({"task": "generation"}, "not given: template."),
        ({"task": "squad", "sfc": True}, "sfc is for classification and choice, not for generation"),
        ({"task": "masked", "template": "x", "labels": WORDS}, "has no {label}"),
        ({"task": "squad", "max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"template": "x", "labels": WORDS}, "does not end in {label}"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TaskSettings(**given)


@pytest.mark.parametrize(
    ("settings", "rows", "text"),
    [
        (TaskSettings(template=TEMPLATE, labels=WORDS), ROWS[:2],
         "the lamp broke here It was bad\n\nthe old radio broke here It was bad\n\n"),
        (TaskSettings("choice", "{a} is {label}"), [{"a": "x", "options": ["p", "q"], "label": "1"}], "x is q\n\n"),
        (TaskSettings("generation", "{a}: {label}"), [{"a": "x", "label": ["p", "q"]}], "x: p\n\n"),
        (TaskSettings("text"), [], ""),
    ],
)  # fmt: skip
def test_worked_examples(settings: TaskSettings, rows: list[Any], text: str) -> None:
    assert settings.worked(settings._prompt(), rows) == text  # type: ignore[arg-type]


def test_worked_examples_stand_before_the_prompts(loaded: tuple[Any, Any]) -> None:
    settings = TaskSettings(template=TEMPLATE, labels=WORDS)
    task = settings.build(ROWS, *loaded, CPU, shots=ROWS[:1])
    assert isinstance(task, Classification)
    text = "the lamp broke here It was bad\n\nthe tap broke here It was"
    assert task.prompts[2] == loaded[1](text)["input_ids"]
    with pytest.raises(DataError, match="worked examples: row 1 has the label '7'"):
        settings.build(ROWS, *loaded, CPU, shots=[{"sentence": "x", "label": "7"}])


@pytest.mark.parametrize(
    ("template", "bare"),
    [(TEMPLATE, "It was {label}"), ("{sentence}\n{label}", "\n{label}"), ("{sentence} {{x}} {label}", "{{x}} {label}")],
)
def test_surface_form_correction_leaves_the_fields_empty(template: str, bare: str) -> None:
    settings = TaskSettings(template=template, labels=WORDS, sfc=True)
    assert settings._without_input(settings._prompt()) == bare  # type: ignore[arg-type]


def test_a_misspelt_task_is_told_the_nearest() -> None:
    with pytest.raises(DataError, match=r"task is 'sqad', expected one of .*\. Did you mean 'squad'\?"):
        TaskSettings("sqad")


def test_a_backslash_before_an_n_is_itself() -> None:
    """The command line alone takes it for a new line: a file and Python have signs of their own for one."""
    settings = TaskSettings("generation", r"\nabla {a} = {label}")
    assert settings.worked(settings._prompt(), [{"a": "f", "label": "0"}]) == "\\nabla f = 0\n\n"  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["text", "chat", "masked"])
def test_worked_examples_need_a_prompt(task: str) -> None:
    settings = TaskSettings(task, template="{text} {label}" if task == "masked" else None, labels=WORDS)
    with pytest.raises(DataError, match=f"task {task}: worked examples stand before a prompt .* Leave --shots out"):
        settings.check([{"text": "a", "messages": [], "label": "0"}], shots=4)


def test_rows_to_learn_from_have_every_label() -> None:
    settings = TaskSettings(template=TEMPLATE, labels=WORDS)
    settings.check(ROWS[:1])
    with pytest.raises(DataError, match=r"labels: no row has the label '[01]'\. Check labels against the data"):
        settings.check(ROWS[:1], learned=True)


@pytest.mark.parametrize(
    ("settings", "row", "message"),
    [
        (TaskSettings(template=TEMPLATE, labels=WORDS), {"sentence": "x", "topic": "0"},
         "no field 'label', which holds the answer. Its fields are 'sentence', 'topic'. .*--label-column"),
        (TaskSettings("choice", "{a} {label}"), {"a": "x", "label": "0"}, "'options', which holds options.*--options"),
        (TaskSettings("generation", "{b} {label}"), {"a": "x", "label": "0"}, "no field 'b', which the template"),
        (TaskSettings("text"), {"body": "x"}, "'text'. Its fields are 'body'. Name one of them: --template '{body}'"),
        (TaskSettings(template=TEMPLATE, labels=WORDS), {"sentence": "x", "label": "7"}, "has the label '7', expected"),
        (TaskSettings("choice", "{a} {label}"), {"a": "x", "options": ["p"], "label": "0"},
         r"row 1: options are \['p'\], expected a list of two texts or more in column 'options'"),
        (TaskSettings("choice", "{a} {label}"), {"a": "x", "options": ["p", "q"], "label": "r"},
         r"row 1: the label 'r' is none of the options \['p', 'q'\]\. Name the column"),
        (TaskSettings("generation", "{a} {label}"), {"a": "x", "label": []}, r"row 1: the answer is \[\], expected"),
        (TaskSettings("generation", "{a} {label}"), {"a": ["x", None], "label": "y"},
         r"row 1: the field 'a' is \['x', null\], but the template '{a} {label}' shows it: expected a text"),
        (TaskSettings("text"), {"text": ["x", "y"]}, r"row 1: expected a text in column 'text', got \['x', 'y'\]\. "),
        (TaskSettings("chat"), {"messages": "hi"}, "row 1: expected a list of messages with role and content"),
        (TaskSettings("chat"), {"messages": [{"role": "user", "content": "x"}]}, "1: no message has the role assis"),
    ],
)  # fmt: skip
def test_rows_are_checked_without_a_model(settings: TaskSettings, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        settings.check([row])


@pytest.mark.parametrize(
    ("settings", "bad"),
    [
        (TaskSettings("choice", "{a} {label}"), {"a": "x", "label": "0"}),
        (TaskSettings("generation", "{a} {label}"), {"a": "x", "label": []}),
    ],
)
def test_worked_examples_are_checked_as_rows_are(
    settings: TaskSettings, bad: dict[str, Any], loaded: tuple[Any, Any]
) -> None:
    good = {"a": "x", "options": ["p", "q"], "label": "p"}
    with pytest.raises(DataError, match="worked examples: row 2"):
        settings.build([good], *loaded, CPU, shots=[good, bad])


@pytest.mark.parametrize("task", ["text", "chat", "generation"])
def test_no_rows(task: str, loaded: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="the data hold no row"):
        TaskSettings(task, "{label}").build([], *loaded, CPU)
