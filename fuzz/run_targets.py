"""The readers of what a run leaves: deltas, trajectories, journals, run folders."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from zoquant import Noise, Trajectory
from zoquant.files.json_lines import read_lines
from zoquant.record.delta import Delta, read_delta
from zoquant.record.group import Group
from zoquant.record.rules import Adam
from zoquant.record.step import Step
from zoquant.tasks import Evaluation, Metric
from zoquant.training import RunFolder
from zoquant.training.micro_batches import MicroBatches

_STEPS = [Step((7 + n, 11 + n), (0.5 + n, -1e-3), (1e-3,)) for n in range(3)]
_RUN = Trajectory(
    (Group({"a.d": "00ff", "b.d": "ff00"}, "relative", Noise("sphere", 0.5), True, Adam(), 0.25),), "fzoo", steps=_STEPS
)
_FOUND = Evaluation("accuracy", {"accuracy": Metric(0.5, (0.1, 0.9)), "loss": Metric(0.7, None)}, 4).to_dict()
_EVALUATED = {f"eval_{name}": value for name, value in _FOUND.items()}
_METRICS = (
    {"step": 0, "seconds": 0.1, **_EVALUATED},
    {
        "step": 1,
        "seconds": 0.1,
        "overhead": 1.1,
        "loss": 0.7,
        "derivative": 0.1,
        "clipped": False,
        "moved": 1.0,
        "lr": 1e-3,
    },
    {"step": 1, "seconds": 0.1, **_EVALUATED},
)


def _delta(folder: Path) -> Path:
    values = {"a.d": torch.ones(2, 3), "b.d": torch.zeros(4)}
    Delta(values, {"a.d": "00ff", "b.d": "ff00"}, "relative").save(folder / "delta.safetensors")
    return folder / "delta.safetensors"


def _trajectory(folder: Path) -> Path:
    _RUN.save(folder / "trajectory.safetensors")
    return folder / "trajectory.safetensors"


def _journal(folder: Path) -> Path:
    _RUN.journal(folder / "trajectory.journal", 2).close()
    return folder / "trajectory.journal"


def _run(folder: Path) -> Path:
    files: dict[str, object] = {
        "settings.json": {"steps": 3, "lr": None, "roles": ["scale"]},
        "calibration.json": {"lr": 1e-3, "eps": 1e-2, "clip": None, "reasons": ["a"], "scan": [{"eps": 1.0}]},
        "micro_batches.json": {"halved_at": [0, 2]},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    for name in ("metrics.jsonl", "samples.jsonl"):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in _METRICS))
    _journal(folder)
    return folder


def _read_run(path: Path, everything: bool) -> None:
    folder = RunFolder(path)
    folder.read_calibration()
    folder.evaluations()
    read_lines(folder.samples)
    if folder.settings.exists():
        folder.read_settings()
    MicroBatches(folder.micro_batches).halvings(1)
    if everything and folder.journal.exists():
        Trajectory.load(folder.journal)


RUN_TARGETS: Mapping[str, tuple[Callable[[Path], Path], Callable[[Path, bool], object]]] = {
    "reader-delta": (_delta, lambda path, _: read_delta(path)),
    "reader-trajectory": (_trajectory, lambda path, _: Trajectory.load(path)),
    "reader-journal": (_journal, lambda path, _: Trajectory.load(path)),
    "reader-run-folder": (_run, _read_run),
}
"""Name -> what writes a sound file into an empty folder, and what reads it."""
