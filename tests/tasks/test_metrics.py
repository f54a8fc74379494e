"""Metrics of generated answers."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoquant.errors import DataError
from zoquant.tasks.metrics import METRICS, exact_match, f1, normalized, rouge_l


def test_answers_are_compared_without_case_articles_and_marks() -> None:
    assert normalized(" The  Eiffel-Tower, an icon!") == "eiffeltower icon"
    assert exact_match("the Tower.", ["a tower", "x"]) == 1
    assert exact_match("tower hill", ["a tower"]) == 0


@pytest.mark.parametrize(
    ("text", "answers", "value"),
    [
        ("a b c", ["b c d"], 2 * 2 / (2 + 3)),
        ("x", ["b", "x"], 1),
        ("", ["b"], 0),
        ("the", ["a"], 1),
        ("b b", ["b"], 2 / 3),
    ],
)
def test_f1(text: str, answers: list[str], value: float) -> None:
    assert f1(text, answers) == pytest.approx(value)


@given(st.text(max_size=30), st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_metrics_lie_between_0_and_1(text: str, answers: list[str]) -> None:
    for name in ("f1", "exact-match"):
        assert 0 <= METRICS[name](text, answers) <= 1
    assert f1(text, [text]) == exact_match(text, [text]) == 1


def test_rouge_l() -> None:
    pytest.importorskip("rouge_score")
    assert rouge_l("police killed the gunman", ["x", "police kill the gunman"]) == 1
    assert rouge_l("the gunman police killed", ["police killed the gunman"]) == pytest.approx(0.5)


def test_rouge_l_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoquant.tasks import metrics

    metrics._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(DataError, match=r"pip install 'zoquant\[rouge\]'"):
        rouge_l("a", ["a"])
