"""What stands between the marks of the pages of results is what was measured."""

import json
from pathlib import Path

import pytest

from docs.measured import BEGIN, END, with_results, with_runs

SPREAD = {"q1": 1.0, "median": 1.5, "q3": 2.0}
GPU = {
    "kind": "gpu-suite", "tiny": False, "machine": {"processor": "Card", "torch": "2", "kernels": "triton 3"},
    "checks": {"writes": True}, "noise": {"rademacher": SPREAD, "gaussian": SPREAD},
    "cases": {"Big, 4-bit": {"batch 1": {"overhead": SPREAD}, "train_peak_gb": 4.5, "limit_gb": 4.8, "weights": 7e9,
                             "compared_with_adamw": False, "adamw_bf16_gb": 80.0},
              "Other": {"skipped": "too large"}},
}  # fmt: skip
POINTS = [{"sweep": "batch", "batch": n, "step_seconds": 2.0 * n} for n in (1, 2, 3)]
GROWTH = {
    "kind": "growth", "short": False, "points": POINTS, "machine": {"processor": "Chip", "threads": 2, "torch": "2"},
}  # fmt: skip
SHARES = {"overhead": SPREAD, "step_seconds": SPREAD}
FORWARDS = ("native_over_dense_float32", "native_over_dense_bfloat16", "native_float32_over_dense_float32",
            "native_activations_over_dense_bfloat16", "native_seconds", "native_activations_seconds",
            "dense_float32_seconds", "dense_bfloat16_seconds")  # fmt: skip
BENCH = {
    "kind": "bench", "checkpoint": "model.gguf", "batch": 16, "length": 32, "rounds": 15, "quick": False,
    "compute_dtype": "bfloat16",
    "machine": {"device": "cpu", "processor": "Chip", "threads": 2, "kernels": "compiled", "torch": "2"},
    "memory": {"train_peak_bytes": 2**30, "evaluate_peak_bytes": 2**30, "train_over_evaluate": 1.02,
               "load_peak_over_imports_bytes": 2**20,
               "peers": {"Full": {"train_peak_bytes": 3 * 2**30}, "Wide": {"skipped": "does not fit"}}},
    "growth": {"steps": 10, "rss_growth_bytes": 0},
    "estimators": {name: {**SHARES, "forwards": count, "forwards_seconds": SPREAD, "tokens_a_second": SPREAD}
                   for name, count in (("two-point", 2), ("fzoo", 3))},
    "input": {"rows": 10, "subspace": "values", "values": 7, "batch_over_step": SPREAD, "step_seconds": SPREAD},
    "bandwidth": {"values": 7, "noise_over_copy": SPREAD, "write_over_copy": SPREAD, "copy_bytes_a_second": SPREAD},
    "replay": {"values": 7, "steps_a_second": SPREAD},
    "batched": {"skipped": "no rows"},
    "scaling": {"batch": [{**SHARES, "batch": 2, "length": 3, "values": 7}]},
    "forward": [{"batch": 16, "length": 32, **dict.fromkeys(FORWARDS, SPREAD)},
                {"batch": 1, "length": 512, **dict.fromkeys(FORWARDS, SPREAD)}],
    "derivatives": {"probes": 200, "compute_dtype": "bfloat16",
                    "products": {"correlation": 0.998, "relative_error": 0.05},
                    "activations": {"correlation": 0.98, "relative_error": 0.2}},
    "peers": {"Full": SHARES, "Wide": {"skipped": "does not fit"}},
}  # fmt: skip


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    (tmp_path / "formats.json").write_text('{"cells": {}}', encoding="utf-8")
    (tmp_path / "tiny.json").write_text(json.dumps({**GPU, "tiny": True}), encoding="utf-8")
    text = with_results(f"by hand\n{BEGIN}old\n{END}too\n", tmp_path)
    assert text.startswith(f"by hand\n{BEGIN}## Bench\n\nNot measured yet")
    assert "## Suite for GPUs\n\nNot measured yet: on a GPU" in text
    assert text.endswith(f"{END}too\n")
    assert "old" not in text


def test_figures_become_tables(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps(GPU), encoding="utf-8")
    (tmp_path / "growth.json").write_text(json.dumps(GROWTH), encoding="utf-8")
    text = with_results(f"{BEGIN}{END}", tmp_path)
    assert "- Big, 4-bit: 7.00 billion weights, AdamW bf16 80.0 GB; overhead, batch 1: 1.500\n" in text
    assert "- peak memory, GB, Big, 4-bit: at most 4.8: 4.500, met\n" in text
    assert "- Other: too large\n" in text
    assert "## Growth, Chip\n\n2 threads, torch 2; 3 points" in text
    assert "- batch, step seconds: 2,000 ms for each row" in text


def test_a_bench_becomes_a_table_of_targets_and_one_of_everything(tmp_path: Path) -> None:
    (tmp_path / "chip.json").write_text(json.dumps(BENCH), encoding="utf-8")
    text = with_results(f"{BEGIN}{END}", tmp_path)
    assert "`model.gguf`, 16 x 32 tokens, 2 threads, torch 2. Medians over 15 rounds" in text
    assert "2 of 9 targets are met." in text
    agreement = "in bfloat16 against float32, correlation | at least 0.99"
    for row in (
        "| step / 2 forwards, two-point | at most 1.03 | 1.500 (1.000 to 2.000) | missed | 1 | 50.00 % |",
        "| training all views / evaluating, peak memory | at most 1.03 | 1.020 | met | 1 | 2.00 % |",
        "| native / dense float32 forward, 16 x 32 tokens | at most 0.5 | 1.500 (1.000 to 2.000) | missed |  |  |",
        f"| derivatives of 200 probes, products {agreement} | 0.9980 | met | 1 | 0.20 % |",
        f"| derivatives of 200 probes, products and activations {agreement} | 0.9800 | missed | 1 | 2.00 % |",
        "| native / dense float32 forward, 1 x 512 tokens | 1.500 (1.000 to 2.000) |",
        "| peak memory, Full | 3,072.0 MiB, 3.00 x zoquant's |",
        "| step, Wide | does not fit |",
        "| probes of rows and columns | no rows |",
    ):
        assert f"{row}\n" in text


def test_quick_and_short_runs_stay_out(tmp_path: Path) -> None:
    (tmp_path / "chip.json").write_text(json.dumps({**BENCH, "quick": True}), encoding="utf-8")
    (tmp_path / "growth.json").write_text(json.dumps({**GROWTH, "short": True}), encoding="utf-8")
    text = with_results(f"{BEGIN}{END}", tmp_path)
    assert "Chip" not in text
    assert text.count("Not measured yet") == 3


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not enough values"):
        with_results("nothing\n", tmp_path)


def test_runs_become_a_table(tmp_path: Path) -> None:
    run = {
        "task": "trec", "way": "backward, adam", "seed": 0, "steps": 25, "batch": 16, "examples": 400,
        "before": 0.375, "after": 0.875, "interval": [0.825, 0.9], "peak_mib": 1756.2, "overhead": 4.0507,
    }  # fmt: skip
    (tmp_path / "runs.jsonl").write_text(json.dumps(run) + "\n", encoding="utf-8")
    text = with_runs(f"{BEGIN}old{END}", tmp_path / "runs.jsonl")
    row = "| trec | backward, adam | 0 | 25 of 16 | 37.5% | 87.5% (82.5% to 90.0%) | 400 | 1,756 MiB | 4.05 |"
    assert f"{row}\n" in text
    assert "old" not in text
