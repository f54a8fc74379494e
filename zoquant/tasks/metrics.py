"""Metrics of a generated answer against the answers that count as right."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from zoquant.errors import DataError

TextMetric = Callable[[str, Sequence[str]], float]
"""Takes a generated text and the right answers; returns a number from 0 to 1."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Return a text in lower case without punctuation, articles and extra spaces.

    Source: the evaluation script of SQuAD 1.1 (Rajpurkar et al., arXiv 1606.05250), which MeZO uses as well.
    """
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(text: str, answers: Sequence[str]) -> float:
    """Return 1 if the normalized text is one of the normalized answers, else 0."""
    return float(any(normalized(text) == normalized(answer) for answer in answers))


def f1(text: str, answers: Sequence[str]) -> float:
    """Return the best F1 of the words of the text with those of an answer, both normalized.

    Where neither has a word, as an answer such as "the" has none, it is 1 if both have none.
    """
    return max(_f1(normalized(text).split(), normalized(answer).split()) for answer in answers)


def rouge_l(text: str, answers: Sequence[str]) -> float:
    """Return the best ROUGE-L F-measure, as the package rouge-score has it, with stems.

    Raises:
        DataError: rouge-score is not installed.
    """
    scorer = _scorer()
    return max(float(scorer.score(answer, text)["rougeL"].fmeasure) for answer in answers)


METRICS: dict[str, TextMetric] = {"f1": f1, "exact-match": exact_match, "rouge-l": rouge_l}


def _f1(got: list[str], expected: list[str]) -> float:
    if not got or not expected:
        return float(got == expected)
    same = sum((Counter(got) & Counter(expected)).values())
    return 2 * same / (len(got) + len(expected))


@lru_cache(maxsize=1)
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise DataError("metric rouge-l needs rouge-score. Run: pip install 'zoquant[rouge]'.") from error
    return RougeScorer(["rougeL"], use_stemmer=True)
