"""Rows of every kind of file, of folders, and what is refused."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import ROWS, write_rows
from zoquant.errors import DataError
from zoquant.tasks.rows import Row, read_rows, row_of


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"sentence": "x, \\"y\\"", "label": 1}\n\n{"sentence": "z", "label": 0}\n'),
        ("a.csv", 'sentence,label\n"x, ""y""",1\nz,0\n'),
        ("a.tsv", 'sentence\tlabel\nx, "y"\t1\nz\t0\n'),
    ],
)
def test_rows_of_every_kind_are_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_rows(tmp_path / name) == [{"sentence": 'x, "y"', "label": "1"}, {"sentence": "z", "label": "0"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "holds no row"),
        ("a.csv", "sentence,label\n", "holds no row"),
        ("a.jsonl", '{"a": 1}\n{"a"', "line 2: not JSON"),
        ("a.jsonl", "[1]\n", r"line 1: expected an object, \{\.\.\.\}, got an array"),
        ("a.csv", "sentence,label\nx\n", "line 2: expected 2 columns, as line 1 has, got fewer. Mend"),
        ("a.csv", "sentence,label\nx,y,z\n", "line 2: expected 2 columns, as line 1 has, got more. Mend"),
        ("a.csv", 'sentence,label\n"x" y,1\n', "from line 2 on: .*Mend its quotes"),
        ("a.csv", 'label,sentence\n0,x\n1,"y\n0,z\n', "from line 3 on: .*Mend its quotes"),
        ("a.csv", 'label,sentence\n0,x\n1,"y\n0,z\n1,"said" he\n', "from line 3 on: .*Mend its quotes"),
        ("a.csv", "label,sentence,label\n0,x,1\n", "line 1: the column 'label' comes twice"),
        ("a.tsv", "label\tlabel\n0\t1\n", "line 1: the column 'label' comes twice"),
        ("a.doc", "x", "unknown kind of file"),
        ("a.json", '[{"a": 1}, 2]', r"object 2: expected an object, \{\.\.\.\}, got a number"),
        ("a.json", '[{"a": 1}', "begins as an array, but is not JSON: .* Mend it, or save it as JSONL"),
        ("a.json", '{\n"a": 1}', "line 1: not JSON: .* or all into one array of a .json file"),
        ("a.json", '[{"a": "\\ud800"}]', "object 1: holds half a character"),
        ("a.json", " []", "holds no row"),
    ],
)
def test_bad_data_files_are_one_clear_error(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_of_objects(tmp_path: Path, indent: int | None) -> None:
    alpaca = [{"instruction": "say \u00e9", "output": "good"}, {"instruction": "no", "output": 1}]
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca, indent=indent))
    assert read_rows(tmp_path / "alpaca.json") == [alpaca[0], {"instruction": "no", "output": "1"}]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_cell_may_be_long(tmp_path: Path, ending: str) -> None:
    """Python's module csv stops at 131,072 characters, unless it is told otherwise; for others that stays."""
    before = csv.field_size_limit()
    between = "," if ending == "csv" else "\t"
    (tmp_path / f"a.{ending}").write_text(f"sentence{between}label\n{'b' * 400_000}{between}0\nbad{between}1\n")
    rows = read_rows(tmp_path / f"a.{ending}")
    assert [len(row["sentence"]) for row in rows] == [400_000, 3]
    assert csv.field_size_limit() == before


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file or folder"):
        read_rows(tmp_path / "nowhere.csv")


def test_written_rows_are_read(tmp_path: Path) -> None:
    assert read_rows(write_rows(tmp_path / "rows.jsonl")) == ROWS


def test_plain_text_has_a_row_for_each_paragraph(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\n")
    assert read_rows(tmp_path / "a.txt") == [{"text": "one\ntwo"}, {"text": "three"}]


def test_a_table_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,1\n", encoding="utf-8-sig")
    assert read_rows(tmp_path / "a.csv") == [{"text": "x", "label": "1"}]


def test_a_line_of_json_may_hold_a_line_separator(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    assert read_rows(tmp_path / "a.jsonl") == [{"text": "a\u2028b"}]


def test_values_are_text_and_lists_stay() -> None:
    row = {"n": 1, "x": 0.5, "yes": True, "none": None, "list": [1, "a"], "object": {"spans": ["b"], "at": [0]}}
    assert row_of(row) == {
        "n": "1", "x": "0.5", "yes": "True", "none": "", "list": ["1", "a"], "object": {"spans": ["b"], "at": ["0"]}
    }  # fmt: skip


NESTED: list[Row] = [
    {"id": "1", "answer": "True", "answers": {"text": ["a", "b"], "answer_start": ["0", "4"]}},
    {"id": "2", "answer": "False", "answers": {"text": [], "answer_start": []}},
]


def as_data(row: Row) -> dict[str, Any]:
    starts = [int(start) for start in row["answers"]["answer_start"]]
    return {
        "id": int(row["id"]),
        "answer": row["answer"] == "True",
        "answers": row["answers"] | {"answer_start": starts},
    }


def test_parquet_has_the_rows_of_jsonl(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [as_data(row) for row in NESTED]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(tmp_path / "a.parquet") == read_rows(tmp_path / "a.jsonl") == NESTED
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.parquet: cannot be read"):
        read_rows(tmp_path / "cut.parquet")


def test_a_parquet_column_whose_name_is_no_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"sentence": ["a"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"sentence", b"\x80entence"))
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read: .*utf-8"):
        read_rows(path)


@pytest.mark.parametrize(("name", "library"), [("a.parquet", "pyarrow"), ("hub:owner/name", "datasets")])
def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=rf"needs .*{library}\. Run: pip install"):
        read_rows(name if name.startswith("hub") else tmp_path / name)


@pytest.mark.parametrize(
    "layout", ["train.jsonl", "train-00000-of-00001.jsonl", "data/train-0.jsonl", "sst2-train.jsonl"]
)
def test_folders_of_splits(tmp_path: Path, layout: str) -> None:
    (tmp_path / "inner" / layout).parent.mkdir(parents=True)
    write_rows(tmp_path / "inner" / layout)
    assert read_rows(tmp_path / "inner") == read_rows(tmp_path, config="inner") == ROWS
    with pytest.raises(DataError, match=r"holds no split 'test', expected a file such as test\.jsonl"):
        read_rows(tmp_path / "inner", split="test")


def test_parts_of_a_split_come_in_order(tmp_path: Path) -> None:
    for number, part in enumerate((ROWS[:5], ROWS[5:])):
        write_rows(tmp_path / f"train-0000{number}-of-00002.jsonl", part)
    assert read_rows(tmp_path) == ROWS


def test_bytes_that_are_text_are_text() -> None:
    """Some programs write the texts of a Parquet file without saying that they are texts."""
    assert row_of({"text": "ä".encode(), "image": b"\xff\x00"}) == {"text": "ä", "image": "\\xff\x00"}


def test_arrays_and_tensors_are_the_numbers_and_texts_that_they_hold() -> None:
    """A table of datasets may give tensors for numbers, and a frame of pandas arrays for lists."""
    row = {"label": torch.tensor(1), "sure": np.bool_(True), "words": np.array(["a", "b"], dtype=object)}
    assert row_of(row | {"pairs": torch.tensor([[1, 2]])}) == {
        "label": "1", "sure": "True", "words": ["a", "b"], "pairs": [["1", "2"]]
    }  # fmt: skip


def test_what_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([as_data(row) for row in NESTED])
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "dict")
    table.save_to_disk(tmp_path / "one")
    assert read_rows(tmp_path / "dict") == read_rows(tmp_path / "one") == NESTED
    with pytest.raises(DataError, match="holds no split 'test', expected one of train"):
        read_rows(tmp_path / "dict", split="test")


def test_names_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Library:
        @staticmethod
        def load_dataset(name: str, config: str | None, split: str) -> list[dict[str, Any]]:
            asked.append((name, config, split))
            return [{"label": 1}] if split != "empty" else []

    monkeypatch.setitem(sys.modules, "datasets", Library)
    assert read_rows("hub:a/b") == [{"label": "1"}]
    read_rows("hub:a/b:test")
    read_rows("hub:a/b:cb:dev", split="x")
    read_rows("hub:a/b", split="validation", config="cb")
    assert asked == [("a/b", None, "train"), ("a/b", None, "test"), ("a/b", "cb", "dev"), ("a/b", "cb", "validation")]
    with pytest.raises(DataError, match="holds no row"):
        read_rows("hub:a/b:empty")
    with pytest.raises(DataError, match="is no name on the Hub"):
        read_rows("hub:a/b:c:d:e")
