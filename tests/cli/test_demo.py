"""The demo's sentences: balanced, and no phrase of the test set was seen in training."""

import re
from collections import Counter

import pytest

from zoquant.cli.demo import reviews
from zoquant.tasks.rows import read_rows

TRAIN, TEST = (read_rows(reviews(part)) for part in ("train", "test"))


def words(sentence: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", sentence.lower())


def phrases(sentence: str, length: int = 4) -> set[tuple[str, ...]]:
    found = words(sentence)
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}


def test_there_are_a_few_hundred_balanced_ones() -> None:
    assert Counter(row["label"] for row in TRAIN) == {"0": 200, "1": 200}
    assert Counter(row["label"] for row in TEST) == {"0": 150, "1": 150}


def test_no_phrase_is_shared() -> None:
    seen = set[tuple[str, ...]]().union(*(phrases(row["sentence"]) for row in TRAIN))
    shared = [row["sentence"] for row in TEST if phrases(row["sentence"]) & seen]
    assert shared == []


def test_no_sentence_stands_twice() -> None:
    sentences = [" ".join(words(row["sentence"])) for row in TRAIN + TEST]
    assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize("rows", [TRAIN, TEST], ids=["train", "test"])
def test_form_gives_no_label_away(rows: list[dict[str, str]]) -> None:
    lengths = {label: [len(words(r["sentence"])) for r in rows if r["label"] == label] for label in "01"}
    means = {label: sum(found) / len(found) for label, found in lengths.items()}
    assert abs(means["0"] - means["1"]) < 0.5
    shouts = Counter(row["label"] for row in rows if row["sentence"].endswith("!"))
    assert shouts["0"] == shouts["1"]
