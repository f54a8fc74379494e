"""Multiple choice."""

from typing import Any

import pytest
import torch

from zoquant.errors import DataError, LossError
from zoquant.tasks import MultipleChoice, Prompt
from zoquant.tasks.kinds.choice import options_of, right_options

CPU = torch.device("cpu")
ROWS = [
    {"premise": "the tap broke", "options": ["it is wet here", "good"], "label": "0"},
    {"premise": "rain", "options": ["good", "bad day out there", "so it is"], "label": "so it is"},
    {"premise": "a lamp that shone all day", "options": ["bad", "good"], "label": ["bad", "good"]},
]
PROMPT = Prompt("{premise} so {label}")


def task(tokenizer: Any, **more: Any) -> MultipleChoice:
    return MultipleChoice(ROWS, PROMPT, ["options"], tokenizer, CPU, **more)


def alone(model: Any, prompt: list[int], option: list[int]) -> list[float]:
    """Return the log-probability of each token of an option, one row at a time, from the whole vocabulary."""
    with torch.no_grad():
        chances = model(input_ids=torch.tensor([prompt + option])).logits[0].float().log_softmax(-1)
    return [float(chances[len(prompt) - 1 + place, token]) for place, token in enumerate(option)]


def scores(model: Any, tokenizer: Any, *, free: bool) -> list[list[float]]:
    """Score all options by hand: the mean a token, or the sum with that of the option alone taken off."""
    found = []
    for row in ROWS:
        prompt = tokenizer(f"{row['premise']} so")["input_ids"]
        tokens = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in row["options"]]
        values = [alone(model, prompt, option) for option in tokens]
        if free:
            bare = [alone(model, tokenizer("so")["input_ids"], option) for option in tokens]
            found.append([sum(value) - sum(other) for value, other in zip(values, bare, strict=True)])
        else:
            found.append([sum(value) / len(value) for value in values])
    return found


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("size", [2, 32])
def test_the_best_option_is_the_answer(loaded: tuple[Any, Any], free: bool, size: int) -> None:
    model, tokenizer = loaded
    best = [values.index(max(values)) for values in scores(model, tokenizer, free=free)]
    right = [best[0] == 0, best[1] == 2, True]
    found = task(tokenizer, sfc="so {label}" if free else None).evaluate(model, batch_size=size)
    assert found.accuracy == pytest.approx(sum(right) / 3)
    assert found.examples == 3


def test_the_loss_is_that_of_the_right_options(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    data = task(tokenizer)
    values = [
        value
        for row, text in zip(ROWS, ("it is wet here", "so it is", "bad"), strict=True)
        for value in alone(
            model,
            tokenizer(f"{row['premise']} so")["input_ids"],
            tokenizer(f" {text}", add_special_tokens=False)["input_ids"],
        )
    ]
    batch = data.batch_of_step(0, 0, 3)
    with torch.no_grad():
        loss = data.loss(model, batch)
        parts = sum(part.weight * data.loss(model, part) for part in batch.halves()) / batch.weight
    assert float(loss) == pytest.approx(-sum(values) / len(values), rel=1e-4)
    assert float(parts) == pytest.approx(float(loss), rel=1e-4)
    assert data.evaluate(model).loss == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        ("2", ["a", "b"], "row 4: the label '2' is none of the options"),
        ("c", ["a", "b"], "the label 'c' is none of the options"),
        ("1", ["1", "2"], "is the text of option 0 and the number of option 1"),
    ],
)
def test_labels_that_name_no_option(label: str, options: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        right_options(label, options, 4)


@pytest.mark.parametrize(
    ("label", "right"), [("1", [1, 2]), ("b", [1, 2]), ("2", [1, 2]), (["c", "b"], [3, 1, 2]), ("0", [0])]
)
def test_options_of_the_same_text_are_all_right(label: Any, right: list[int]) -> None:
    assert right_options(label, ["a", "b", "b", "c"], 1) == right


@pytest.mark.parametrize("wrong", [0, 1])
def test_an_option_whose_score_is_no_number_is_no_wrong_answer(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    data = MultipleChoice([{"premise": "a", "options": ["p", "q"], "label": "p"}], PROMPT, ["options"], loaded[1], CPU)
    scores = [-1.0, -2.0]
    scores[wrong] = float("nan")
    monkeypatch.setattr(data, "_sums", lambda *_: [scores])
    with pytest.raises(LossError, match="is NaN, expected a number"):
        data.evaluate(loaded[0])


def test_options_in_columns_of_their_own() -> None:
    assert options_of({"a": "x", "b": "y"}, ["a", "b"], 1) == ["x", "y"]
    for row in ({"a": "x"}, {"a": ["x"]}):
        with pytest.raises(DataError, match=r"row 7: options are .* expected a list of two texts or more"):
            options_of(row, ["a"], 7)


def test_a_missing_column_is_named(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="row 1 has no field 'answers'"):
        MultipleChoice(ROWS, PROMPT, ["answers"], loaded[1], CPU)
