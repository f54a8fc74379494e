"""The part of docs/benchmarks.md between its marks is what benchmarks/results gives."""

import json
from pathlib import Path

import pytest

from docs.generate import BENCHMARKS, benchmarks
from docs.results import BEGIN, END, with_results

SPREAD = {"q1": 1.0, "median": 1.5, "q3": 2.0}
GPU = {
    "kind": "gpu-suite", "tiny": False, "machine": {"processor": "Card", "torch": "2", "kernels": "triton 3"},
    "checks": {"writes": True}, "noise": {"rademacher": SPREAD, "gaussian": SPREAD},
    "cases": {"Big, 4-bit": {"batch 1": {"overhead": SPREAD}, "train_peak_gb": 4.5, "limit_gb": 4.8, "weights": 7e9,
                             "compared_with_adamw": False, "adamw_bf16_gb": 80.0},
              "Other": {"skipped": "too large"}},
}  # fmt: skip
POINTS = [{"sweep": "batch", "batch": n, "step_seconds": 2.0 * n} for n in (1, 2, 3)]


def test_the_page_is_what_the_results_give() -> None:
    assert BENCHMARKS.read_text(encoding="utf-8") == benchmarks(), "docs/benchmarks.md is stale: run `make docs`"


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    (tmp_path / "formats.json").write_text('{"cells": {}}', encoding="utf-8")
    (tmp_path / "tiny.json").write_text(json.dumps({**GPU, "tiny": True}), encoding="utf-8")
    text = with_results(f"by hand\n{BEGIN}old\n{END}too\n", tmp_path)
    assert text.startswith(f"by hand\n{BEGIN}## zoquant bench\n\nNot measured yet")
    assert "## Suite for GPUs\n\nNot measured yet: on a GPU" in text
    assert text.endswith(f"{END}too\n")
    assert "old" not in text


def test_figures_become_tables(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps(GPU), encoding="utf-8")
    grown = {"kind": "growth", "points": POINTS, "machine": {"processor": "Chip"}}
    (tmp_path / "growth.json").write_text(json.dumps(grown), encoding="utf-8")
    text = with_results(f"{BEGIN}{END}", tmp_path)
    assert "- Big, 4-bit: 7.00 billion weights, AdamW bf16 80.0 GB; overhead, batch 1: 1.500\n" in text
    assert "- peak memory, GB, Big, 4-bit: at most 4.8: 4.500, met\n" in text
    assert "- Other: too large\n" in text
    assert "| batch | batch | " in text
    assert "| 2 | 1.0000 |" in text


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not enough values"):
        with_results("nothing\n", tmp_path)
