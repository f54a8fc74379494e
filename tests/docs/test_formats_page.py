"""docs/formats.md has a place for every format and class, and for what was run."""

import re

import zoquant
from docs.generate import PAGE
from docs.matrix import COLUMNS, RUN, matrix


def test_every_format_and_class_has_its_place() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in zoquant.list_formats():
        assert re.search(rf"^\| \[{name}\]\(#{name}\) \|", text, re.MULTILINE), name
        assert f"\n## {name}\n" in text
    assert [name for name in zoquant.list_backends() if f"`{name}`" not in text] == []


def test_the_tables_of_what_was_run() -> None:
    run = {**dict.fromkeys(RUN, "1"), "checkpoint": "a|b"}
    text = matrix({"cells": {"gptq": {"live": "works", "export": "refused: why"}}, "runs": [run]})
    assert f"| gptq | works | not tried | refused: why |{' not tried |' * (len(COLUMNS) - 3)}\n" in text
    assert "| 1 | a/b | 1 |" in text
