"""The demo: its sentences are balanced, none of the test set was seen in training, and it replaces its own runs."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.report.runs import make_run
from zoquant.cli import demo as module
from zoquant.cli.demo import CHECKPOINT, SETTINGS, TEMPLATE, demo, reviews
from zoquant.errors import FolderInUseError, OutputExistsError
from zoquant.tasks.rows import read_rows
from zoquant.training import RunFolder

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


def test_nothing_but_a_demo_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the run of a user who gave its folder, and not a demo that is under way."""
    checkpoint = tmp_path / CHECKPOINT
    monkeypatch.setattr(module, "checkpoint", lambda: checkpoint)
    monkeypatch.setattr(module, "finetune", lambda *_, **__: {"finished": False})
    out = make_run(tmp_path / "run", steps=2).path
    held = sorted(out.iterdir())
    for folder in (out, tmp_path):
        with pytest.raises(OutputExistsError, match=r"exists and is no run of the demo\. Choose another folder"):
            demo(folder, SETTINGS, lambda _: None)
    assert sorted(out.iterdir()) == held
    settings = {"model": str(checkpoint), "template": TEMPLATE.text}
    (out / "settings.json").write_text(json.dumps(settings))
    other = RunFolder(out)
    other.lock.acquire()
    with pytest.raises(FolderInUseError, match="a run is under way here"):
        demo(out, SETTINGS, lambda _: None)
    other.release()
    assert sorted(out.iterdir()) == held
    assert demo(out, SETTINGS, lambda _: None) == {"finished": False}
    assert not out.exists()
