"""Texts that fit, and texts that do not."""

import logging
from typing import Any

import pytest
import torch

from tests.tasks.pieces import sentencepiece
from zoquant.errors import DataError
from zoquant.tasks import Classification, Generation, MultipleChoice, Prompt, Template
from zoquant.tasks.encoding import Encoder, longest, padded

CPU = torch.device("cpu")


def test_a_long_prompt_loses_its_beginning_and_says_so(
    loaded: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    _, tokenizer = loaded
    whole = tokenizer("abcdefgh")["input_ids"]
    with caplog.at_level(logging.WARNING, "zoquant"):
        short, long = Encoder(tokenizer, 7).prompts(["xy", "abcdefgh"], [2, 2])
    assert short == tokenizer("xy")["input_ids"]
    first = whole[:1] if whole[0] == tokenizer.bos_token_id else []
    assert long == first + whole[len(whole) - 5 + len(first) :]
    assert "1 of 2 prompts are longer than the 7 tokens of the model" in caplog.text


def test_the_token_that_begins_a_text_stays() -> None:
    class Begins:
        bos_token_id, eos_token_id = 1, 2

        def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
            return {"input_ids": [[1, *range(10, 10 + len(text))] for text in texts]}

    assert Encoder(Begins(), 6).prompts(["abcdefgh"], [2]) == [[1, 15, 16, 17]]


class Ends:
    """Puts 1 before a text and 2 after it; what a text says itself stays."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, text: Any, add_special_tokens: bool = True) -> dict[str, Any]:
        if isinstance(text, list):
            return {"input_ids": [self(each)["input_ids"] for each in text]}
        bare = [2 if letter == "$" else ord(letter) for letter in text]
        return {"input_ids": [1, *bare, 2] if add_special_tokens else bare}


def test_a_prompt_does_not_end_the_text() -> None:
    found = Encoder(Ends()).prompts(["ab", "a$", ""], [1, 1, 1])
    assert found == [[1, 97, 98], [1, 97, 2], [1]]
    assert Encoder(Ends(), 4).prompts(["abcd"], [1]) == [[1, 99, 100]]


def test_what_cannot_fit_is_refused(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="an answer has up to 6 tokens, but the model takes 7"):
        Encoder(loaded[1], 7).prompts(["ab"], [6])
    with pytest.raises(DataError, match="'' has no tokens"):
        Encoder(loaded[1]).continuation("")


TEMPLATES = ["{q} It was {label}", "{q}\n{label}", "{q} {label}", "Say\n\n{q}: {{now}}\nIt was {label}", "{q} ({label}"]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("pieces", [True, False], ids=["sentencepiece", "byte-level"])
def test_what_follows_a_prompt_has_the_tokens_that_it_has_there(
    loaded: tuple[Any, Any], template: str, pieces: bool
) -> None:
    tokenizer = sentencepiece() if pieces else loaded[1]
    rows: list[dict[str, Any]] = [
        {"q": "so it is", "label": "bad", "options": ["bad", "good"]},
        {"q": "nice", "label": "good"},
    ]
    rows[1]["options"] = rows[0]["options"]
    prompt = Prompt(template)
    words = Classification(rows, Template(template, {"bad": "bad", "good": "good"}), tokenizer, CPU)
    choice = MultipleChoice(rows, prompt, ["options"], tokenizer, CPU)
    written = Generation(rows, prompt, tokenizer, CPU, max_new_tokens=2, stop="\n")
    for number, row in enumerate(rows):
        whole = tokenizer(prompt.prompt(row) + prompt.follow(row["label"]))["input_ids"]
        assert words.prompts[number] + words.words[number] == whole
        assert choice.options[number][number].ids == whole
        assert written.answers[number].ids[: len(whole)] == whole


def test_where_the_prompts_last_token_would_change_a_word_has_its_own() -> None:
    tokenizer = sentencepiece()
    assert tokenizer.convert_ids_to_tokens(tokenizer("\n#bad")["input_ids"])[2:] == ["#b", "a", "d"]
    assert Encoder(tokenizer).continuation("bad", "#") == tokenizer.convert_tokens_to_ids(["bad"])


def test_the_words_of_a_byte_level_tokenizer_are_those_alone(loaded: tuple[Any, Any]) -> None:
    for text in (" good", "good", "\ngood", " a tap\n"):
        assert Encoder(loaded[1]).continuation(text, " It was") == loaded[1](text)["input_ids"]


def test_an_empty_prompt_is_the_token_that_begins_a_text(loaded: tuple[Any, Any]) -> None:
    assert Encoder(loaded[1]).prompts([""], [1]) == [[loaded[1].bos_token_id]]


def test_worked_examples_stand_before_every_prompt(loaded: tuple[Any, Any]) -> None:
    assert Encoder(loaded[1], prefix="ab ").prompts(["c"], [0]) == [loaded[1]("ab c")["input_ids"]]


def test_the_length_of_a_model(loaded: tuple[Any, Any]) -> None:
    assert longest(loaded[0]) == loaded[0].config.max_position_embeddings
    assert longest(torch.nn.Linear(1, 1)) is None


def test_padding() -> None:
    assert padded([[1], [2, 3]]).tolist() == [[1, 0], [2, 3]]
    assert padded([[1], [2, 3]], 9, left=True).tolist() == [[9, 1], [2, 3]]
