"""Rows that train, choose and test."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from zoquant.errors import DataError
from zoquant.tasks import TaskSettings
from zoquant.tasks.rows import Row
from zoquant.tasks.splits import by_label, drawn, parts_differ, read_parts, read_test
from zoquant.training import Source, evaluate

SST2 = TaskSettings("sst2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 1800), ("validation", 1200)):
        lines = [json.dumps({"sentence": f"{split} {i}", "label": i % 2, "idx": i}) for i in range(count)]
        (tmp_path / "sst2").mkdir(exist_ok=True)
        (tmp_path / "sst2" / f"{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


def numbers(rows: list[Row] | None) -> list[int]:
    return [int(row["idx"]) for row in rows or []]


@pytest.mark.parametrize("seed", [0, 7])
def test_the_protocol_draws_what_mezo_draws(folder: Path, seed: int) -> None:
    """`np.random.seed(seed); np.random.permutation(n)`, the last 500 of 1,500 for choices; test alike of 1,000."""
    parts = read_parts(SST2, folder, None, "mezo", seed)
    np.random.seed(seed)
    train = np.random.permutation(1800)[:1500].tolist()
    np.random.seed(seed)
    test = np.random.permutation(1200)[:1000].tolist()
    assert numbers(parts.train) == train[:1000]
    assert numbers(parts.dev) == train[1000:]
    assert numbers(parts.test) == numbers(read_test(SST2, folder, "mezo", seed)) == test


def test_without_a_protocol_all_rows_are_taken(folder: Path) -> None:
    parts = read_parts(SST2, folder, folder, None, 0)
    assert numbers(parts.train) == list(range(1800))
    assert numbers(parts.dev) == list(range(1200))
    assert parts.test is None
    assert read_parts(SST2, folder, None, None, 0).dev is None


def test_small_data_still_has_a_part_for_choices() -> None:
    parts = read_parts(TaskSettings("copa"), Path(__file__).parent / "data" / "both", None, "mezo", 0)
    assert (len(parts.train), len(parts.dev or []), len(parts.test or [])) == (1, 1, 2)


@pytest.mark.parametrize(
    ("task", "protocol", "eval_data"),
    [("sst2", "wild", None), ("sst2", "mezo", "x"), ("text", "mezo", None)],
)
def test_protocols_that_do_not_fit(folder: Path, task: str, protocol: str, eval_data: str | None) -> None:
    with pytest.raises(DataError, match="expected mezo, a named task"):
        read_parts(TaskSettings(task), folder, eval_data, protocol, 0)


@pytest.mark.parametrize("data", ["sst2/train.jsonl", "hub:a/b:validation", "hub:a/b:c:validation", "saved"])
def test_a_protocol_needs_splits(folder: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    """Of these sources every split is the same rows: what is trained on would be tested on."""
    (folder / "saved").mkdir()
    (folder / "saved" / "state.json").write_text("{}")
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match="has no splits, so rows to train on would be rows to test on"):
        read_parts(SST2, data, None, "mezo", 0)
    with pytest.raises(DataError, match=f"shots is 2, but {data} has no splits"):
        evaluate(Source("none.gguf"), data, SST2, shots=2)


@pytest.mark.parametrize("data", ["hub", "hub:a/b", "."])
def test_sources_with_splits(folder: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.chdir(folder)
    assert parts_differ(SST2, data)


def test_a_protocol_of_evaluation(folder: Path) -> None:
    with pytest.raises(DataError, match="protocol is 'wild', expected mezo"):
        read_test(SST2, folder, "wild", 0)


def test_rows_of_each_label() -> None:
    rows = [{"label": str(i % 3), "idx": str(i)} for i in range(20)]
    train, dev = by_label(rows, "label", 2, 0)
    assert Counter(row["label"] for row in train) == Counter(row["label"] for row in dev) == {"0": 2, "1": 2, "2": 2}
    assert not set(numbers(train)) & set(numbers(dev))
    few, rest = by_label(rows, "label", 100, 0)
    assert Counter(row["label"] for row in few) == Counter(row["label"] for row in rest) == {"0": 3, "1": 3, "2": 3}


def test_draws_depend_on_the_seed_alone() -> None:
    rows = [{"idx": str(i)} for i in range(10)]
    assert drawn(rows, 1, 4) == drawn(rows, 1, 4) != drawn(rows, 2, 4)


def test_hub_stands_for_the_data_of_a_named_task() -> None:
    with pytest.raises(DataError, match="task text has no data set of its own"):
        read_parts(TaskSettings("text"), "hub", None, None, 0)


@pytest.mark.parametrize("row", [{"label": ["0", "1"]}, {"label": {"a": "0"}}, {"kind": "0"}])
def test_a_label_to_draw_by_is_one_text(row: Row) -> None:
    with pytest.raises(DataError, match=r"row 2 has the label .* in the column 'label', expected one text"):
        by_label([{"label": "0"}, row], "label", 1, 0)


def test_a_bad_worked_example_is_named_with_its_file_before_a_model_is_loaded(folder: Path) -> None:
    shots = folder / "shots.jsonl"
    shots.write_text('{"sentence": "fine", "label": 1, "idx": 0}\n{"sentence": "x", "label": 2, "idx": 1}\n')
    with pytest.raises(DataError, match=r"^.*shots\.jsonl: row 2 has the label '2', expected one of '0', '1'"):
        evaluate(Source("none.gguf"), folder / "sst2" / "train.jsonl", SST2, shots=1, shots_from=shots)
