"""Scores of label words and options are those of MeZO's own functions.

Source: princeton-nlp/MeZO at 552cb1b, `large_models`: `encode_prompt` of `utils.py`, `forward` and `one_step_pred` of
`run.py` with the templates of `templates.py` were run on the tiny model of these tests and the first row of each data
set. The numbers are the `scores` whose largest is its prediction.
"""

from typing import Any

import pytest
import torch

from tests.tasks.test_catalog import rows
from zoquant.tasks import Classification, MultipleChoice, TaskSettings

CPU = torch.device("cpu")
SCORES = {
    "sst2": [-5.81908, -6.12136], "rte": [-5.22764, -6.67414], "cb": [-5.96523, -6.25282, -6.28134],
    "boolq": [-6.07758, -6.39292], "wsc": [-6.04424, -5.78903], "wic": [-6.34847, -5.79115],
    "multirc": [-5.79094, -5.81982], "copa": [-5.78293, -5.84222], "record": [-5.93017, -5.93949, -5.84808],
}  # fmt: skip
WITHOUT_INPUT = {"sst2": [0.10356, -2.39556], "copa": [1.37939, 2.0436], "record": [1.30907, 1.48653, 9.99202]}


def scores(task: Any, model: Any, sfc: bool) -> list[float]:
    """Return what the evaluation of a task compares for its first row."""
    if isinstance(task, Classification):
        found = task.scores(model, task.batch([0]), summed=sfc)[0]
        offsets = task._offsets(model)
        return (found if offsets is None else found - offsets[0]).tolist()
    assert isinstance(task, MultipleChoice)
    sums = task._sums(model, task.options[:1], 32)[0]
    if not sfc:
        return [total / option.count for total, option in zip(sums, task.options[0], strict=True)]
    return [a - b for a, b in zip(sums, task._sums(model, task.empty[:1], 32)[0], strict=True)]


@pytest.mark.parametrize(
    ("name", "sfc", "expected"),
    [(name, False, found) for name, found in SCORES.items()] + [(n, True, found) for n, found in WITHOUT_INPUT.items()],
)
def test_scores_are_those_of_mezo(
    name: str, sfc: bool, expected: list[float], loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No prompt is cut, as with its `--max_length`."""
    model, tokenizer = loaded
    monkeypatch.setattr("zoquant.tasks.spec.longest", lambda _: 512)
    task = TaskSettings(name, sfc=sfc).build(rows(name), model, tokenizer, CPU)
    with torch.no_grad():
        found = torch.tensor(scores(task, model, sfc))
    if isinstance(task, Classification) and all(len(word) == 1 for word in task.words):
        found, wanted = found.log_softmax(0), torch.tensor(expected).log_softmax(0)  # up to a constant
    else:
        wanted = torch.tensor(expected)
    torch.testing.assert_close(found, wanted, atol=5e-4, rtol=0)
