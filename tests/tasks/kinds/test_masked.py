"""Masked models: BERT and RoBERTa of transformers, tiny."""

import logging
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from zoquant.errors import DataError
from zoquant.tasks import Cloze, MaskedClassification
from zoquant.tasks.encoding import longest

CPU = torch.device("cpu")
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
WORDS = [*SPECIAL, "it", "was", ".", "the", "lamp", "radio", "old", "shone", "broke", "good", "bad", "fine"]
ROWS = [
    {"text": text, "label": label}
    for text, label in (
        ("the lamp shone", "1"),
        ("the old radio broke", "0"),
        ("lamp broke", "0"),
        ("it was fine", "1"),
    )
]
CLOZE = Cloze("{text} it was {label} .", {"0": "bad", "1": "good"})
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 17}


def words() -> Any:
    """Return a tokenizer of these words."""
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = BertPreTokenizer()
    made.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        mask_token="<mask>",
    )  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return words()


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    common = {**SMALL, "max_position_embeddings": 34, "pad_token_id": 0}
    if kind == "bert":
        return BertForMaskedLM(BertConfig(**common)).eval()
    if kind == "roberta":
        return RobertaForMaskedLM(RobertaConfig(**{**common, "pad_token_id": 1})).eval()
    return ModernBertForMaskedLM(ModernBertConfig(**common, bos_token_id=2, eos_token_id=3)).eval()


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_scores_are_the_logits_of_the_words_at_the_mask(tokenizer: Any, kind: str) -> None:
    model = model_of(kind)
    data = MaskedClassification(ROWS, CLOZE, tokenizer, CPU)
    with torch.no_grad():
        scores = data.scores(model, data.batch(range(4)))
        for row, found in zip(ROWS, scores, strict=True):
            ids = tokenizer(f"{row['text']} it was <mask> .", return_tensors="pt")["input_ids"]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            place = ids[0].tolist().index(tokenizer.mask_token_id)
            expected = logits[0, place, [WORDS.index("bad"), WORDS.index("good")]]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_evaluation_and_halves(tokenizer: Any) -> None:
    model = model_of("bert")
    data = MaskedClassification(ROWS, CLOZE, tokenizer, CPU)
    batch = data.batch_of_step(0, 0, 4)
    assert sorted(batch.labels.tolist()) == [0, 0, 1, 1]
    with torch.no_grad():
        parts = sum(part.weight * data.loss(model, part) for part in batch.halves()) / batch.weight
        torch.testing.assert_close(parts, data.loss(model, batch))
        assert data.accuracy(model, batch) == data.evaluate(model, batch_size=3).accuracy
        assert data.evaluate(model).loss == pytest.approx(float(data.loss(model, batch)), rel=1e-4)


def test_a_long_text_is_cut_before_the_mask_and_says_so(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "zoquant"):
        data = MaskedClassification(ROWS, CLOZE, tokenizer, CPU, max_length=8)
    assert [len(text) for text in data.texts] == [8, 8, 8, 8]
    assert all(text[0] == 2 and text[-1] == 3 for text in data.texts)
    assert all(text[place] == tokenizer.mask_token_id for text, place in zip(data.texts, data.masks, strict=True))
    assert "3 of 4 texts are longer than the 8 tokens" in caplog.text


def test_a_model_that_counts_from_its_padding_takes_fewer_tokens() -> None:
    assert longest(model_of("bert")) == 34
    assert longest(model_of("roberta")) == 32


@pytest.mark.parametrize(
    ("cloze", "message"),
    [
        ("{text} it was", "has no {label}, or several"),
        ("{sentence} it was {label}", "row 1 has no field 'sentence'"),
        ("{text} it was <mask> {label}", "holds a mask token of its own"),
    ],
)
def test_bad_clozes(tokenizer: Any, cloze: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MaskedClassification(ROWS, Cloze(cloze, CLOZE.words), tokenizer, CPU)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"0": "it was", "1": "good"}, "'it was' is 2 tokens, but a mask is one"),
        ({"0": "good", "1": "good"}, "are the same token"),
        ({"0": "bad", "2": "good"}, "row 1 has the label '1'"),
    ],
)
def test_bad_words(tokenizer: Any, words: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        MaskedClassification(ROWS, Cloze(CLOZE.text, words), tokenizer, CPU)


def test_a_tokenizer_without_a_mask(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="has no mask token"):
        MaskedClassification(ROWS, CLOZE, loaded[1], CPU)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{kind} : {text} it was {label} .",
            r"it was {label} \.' shows the answer: it holds \{label\} or the column 'kind'",
        ),
        ("{text} it was {label} , {kind} .", "shows the answer"),
        ("{text:>3000} it was {label} .", "has a format, expected a name alone"),
        ("{text.__class__} it was {label} .", "is no name of a column"),
    ],
)
def test_a_cloze_shows_no_answer_and_runs_nothing(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Cloze(text, {"bad": "bad", "good": "good"}, label="kind")


def test_held_out_rows_may_have_one_label(tokenizer: Any) -> None:
    task = MaskedClassification(ROWS[1:3], CLOZE, tokenizer, CPU)
    assert task.labels == [0, 0]
    assert task.evaluate(model_of("bert")).examples == 2
