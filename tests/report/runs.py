"""Folders of runs as a trainer leaves them, made without training."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from zoquant.record.delta import Delta
from zoquant.training import RunFolder

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>\x00\ud800]]>--><!-- ${x}"
KINDS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")


def make_run(
    path: Path, *, steps: int = 40, layers: int = 4, text: str = "plain", finished: bool = True, samples: bool = True
) -> RunFolder:
    """Write the folder of a run; `text` stands in every field that holds text, and in every name."""
    folder = RunFolder(path)
    path.mkdir(parents=True)
    settings = {
        "steps": steps, "batch_size": 4, "lr": None, "eps": 0.03, "clip": None, "seed": 0, "roles": ["scale", text],
        "space": "relative", "estimator": text, "rule": text, "model": text, "data": text, "eval_data": text,
        "task": text, "template": text, "labels": {text: text}, "include": None, "coupled": True, "gradient": "forward",
        text: text,
    }  # fmt: skip
    folder.settings.write_text(json.dumps(settings))
    folder.calibration.write_text(json.dumps({"lr": 0.01, "eps": 0.03, "clip": None, "reasons": [text]}))
    lines = [
        evaluation(0, 0.5, text),
        *(step_line(step, text) for step in range(1, steps + 1)),
        evaluation(steps, 0.8, text),
    ]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        f"model.layers.{layer}.{kind}.d": torch.full((8,), 0.1 * layer) for layer in range(layers) for kind in KINDS
    }
    values |= {f"model.layers.1.mlp.{clean(text)}.d": torch.ones(2), "lm_head.d": torch.zeros(3)}
    Delta(values, dict.fromkeys(values, "0"), "relative").save(folder.delta)
    if samples:
        told = [
            {"step": step, "prompt": text, "text": f"{text} {step}", "references": [text], "score": 0.5}
            for step in (0, steps)
        ]
        folder.samples.write_text("".join(json.dumps(line) + "\n" for line in told))
    if finished:
        folder.summary.write_text(json.dumps(summary(steps, text)))
    return folder


def clean(text: str) -> str:
    """Return text that a tensor may be called: safetensors takes valid text alone."""
    return text.replace("\ud800", "").replace("\x00", "").replace(".", "")


def step_line(step: int, text: str) -> dict[str, Any]:
    return {
        "step": step, "seconds": 0.1 + step / 1e3, "loss": 1 / step, "derivative": math.sin(step), "clipped": step == 3,
        "moved": 1.0, "lr": 0.01 / step, "overhead": 1.1, text: text, "note": text,
    }  # fmt: skip


def evaluation(step: int, accuracy: float, text: str) -> dict[str, Any]:
    ends = [accuracy - 0.1, accuracy + 0.1]
    found = {
        "eval_primary": "accuracy", "eval_accuracy": accuracy, "eval_accuracy_interval": ends,
        "eval_loss": 1 - accuracy, "eval_loss_interval": None, "eval_examples": 100, f"eval_{text}": 0.25,
    }  # fmt: skip
    return {"step": step, "seconds": 1.0, "eval_note": text} | found


def summary(steps: int, text: str) -> dict[str, Any]:
    ends = {
        f"eval_{when}": {
            "primary": "accuracy", "examples": 100, "accuracy": value, "accuracy_interval": [value - 0.1, value + 0.1],
            "loss": 1 - value, "loss_interval": None, text: 0.5, f"{text}_interval": None,
        }
        for when, value in (("before", 0.5), ("after", 0.8))
    }  # fmt: skip
    return ends | {"skipped": 1,
        "model": text, "format": text, "device": text, "compute_dtype": text, "finished": True, "views": 14,
        "trainable": 101, "steps": steps, "step_seconds": 0.12, "forward_seconds": 0.05, "overhead": 1.1,
        "rss_loaded_bytes": 2**28, "rss_peak_bytes": 2**29, "delta_bytes": 500, "trajectory_bytes": 900,
        "calibration": None, "export_path": None, text: text, "best_step": steps // 2, "changed": 0.5,
        "test": {"primary": "accuracy", "examples": 50, "accuracy": 0.75, "accuracy_interval": [0.65, 0.85]},
    }  # fmt: skip
