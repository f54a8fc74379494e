"""The promises of reliability.md: each names a test that exists, and the figures are those that were measured."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "understand" / "reliability.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("|")][2:]


def test_there_are_promises() -> None:
    assert len(ROWS) >= 15


@pytest.mark.parametrize("row", ROWS, ids=[row[0].strip()[:40] for row in ROWS])
def test_the_test_of_a_promise_exists(row: list[str]) -> None:
    promise, shown, figure = (cell.strip() for cell in row)
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown)
    assert named, promise
    assert figure
    for file, function in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert function in functions, f"{file}::{function}"


def test_the_kills_are_those_of_the_result() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "soak.json").read_text())
    said = re.search(r"(\d+) kills, (\d+) of whole processes, in (\d+) runs", PAGE)
    assert said is not None
    assert [int(number) for number in said.groups()] == [found["kills"], found["fresh"], found["runs"]]
