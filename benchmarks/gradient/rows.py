"""The three tasks that runs are compared on, and their rows."""

import json
import random
from pathlib import Path
from typing import Any

from zoquant.tasks import TaskSettings

ROWS = 1000
"""Rows to learn from."""
TESTED = 500
"""Rows to test on, the same for all; TREC and AG News have 400."""

TASKS = {
    "sst2": TaskSettings(template="{sentence} It was {label}", labels={"0": "terrible", "1": "great"}),
    "trec": TaskSettings(
        template="Question: {text}\nType: {label}",
        labels={
            "NUM": "number", "LOC": "location", "HUM": "person", "DESC": "description", "ENTY": "entity",
            "ABBR": "abbreviation",
        },
    ),
    "ag_news": TaskSettings(
        template="{text}\nTopic: {label}", labels={"1": "world", "2": "sports", "3": "business", "4": "science"}
    ),
}  # fmt: skip


def to_learn(data: Path, task: str, seed: int) -> list[dict[str, Any]]:
    """Return the rows of a run, drawn by its seed."""
    rows = _read(data, task, "train")
    random.Random(seed).shuffle(rows)
    return rows[:ROWS]


def to_test(data: Path, task: str) -> list[dict[str, Any]]:
    """Return the rows that every run is tested on."""
    rows = _read(data, task, "test")
    random.Random(0).shuffle(rows)
    return rows[:TESTED]


def write(rows: list[dict[str, Any]], path: Path) -> str:
    """Write rows as JSON Lines, and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _read(data: Path, task: str, part: str) -> list[dict[str, Any]]:
    if task == "sst2":
        lines = (data / "sst2" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()
        return [dict(zip(("sentence", "label"), line.rsplit("\t", 1), strict=True)) for line in lines if line.strip()]
    name = {"trec": "trec/trec", "ag_news": "ag_news/ag"}[task]
    text = (data / f"{name}_{part}.jsonl").read_text(encoding="utf-8")
    return [{**row, "label": str(row["label"])} for row in map(json.loads, text.splitlines())]
