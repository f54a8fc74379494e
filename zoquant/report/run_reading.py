"""A run as its folder has it, under way or done."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoquant.errors import CheckpointError
from zoquant.files.json_lines import read_lines
from zoquant.report.moves import Moves
from zoquant.training.run_folder import RunFolder

_POINTS = 300
_LARGEST = 1e100


@dataclass(frozen=True)
class Sample:
    """What the model makes of a prompt after some steps."""

    step: int
    prompt: str
    text: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """What the folder of a run holds; summary and calibration are empty while there is none.

    `steps` and `evaluations` are lines of the metrics; `name` is that of the folder, or more where two are the same.
    """

    name: str
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    calibration: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    moves: Moves | None
    samples: Sequence[Sample]

    @classmethod
    def read(cls, path: str | Path, name: str) -> "Recorded":
        """Read a folder.

        Raises:
            CheckpointError: it is no folder of a run, or a file in it is damaged.
        """
        folder = RunFolder(path)
        if not folder.settings.exists():
            raise CheckpointError(
                f"{path}: holds no run, expected {folder.settings.name} in it. Pass the --out of a run."
            )
        lines = _lines(folder.metrics)
        moves = Moves.read(folder.delta) if folder.delta.exists() else None
        return cls(
            name=name,
            settings=folder.read_settings(),
            summary=folder.read_summary() if folder.summary.exists() else {},
            calibration=folder.read_calibration() or {},
            steps=[line for line in lines if finite(line, "loss") is not None],
            evaluations=[line for line in lines if metrics_of(line)],
            moves=moves if moves is not None and moves.rms else None,
            samples=[_sample(folder.samples, number, line) for number, line in enumerate(_lines(folder.samples), 1)],
        )

    def parts(self) -> list["Recorded"]:
        """Return the run by backwards and the forwards that followed, each by itself; nothing of a run of one way."""
        steps, forwards = (finite(self.settings, name) for name in ("steps", "forward_steps"))
        if steps is None or not forwards:
            return []
        return [
            self._part("backward", [each for each in self.steps if each["step"] <= steps], -1.0, steps),
            self._part("forward", [each for each in self.steps if each["step"] > steps], steps, steps + forwards),
        ]

    def _part(self, way: str, lines: Sequence[Mapping[str, Any]], after: float, until: float) -> "Recorded":
        """Return some steps as a run of their own, with what was evaluated from its beginning to its end."""
        found = [line for line in self.evaluations if after <= line["step"] <= until]
        summary: dict[str, Any] = {
            name: statistics.median(values)
            for name, key in (("step_seconds", "seconds"), ("overhead", "overhead"))
            if (values := [value for line in lines if (value := finite(line, key)) is not None])
        }
        if len(found) > 1:
            summary |= {"eval_before": _plain(found[0]), "eval_after": _plain(found[-1])}
        objective = "loss" if way == "backward" else self.settings.get("objective", "loss")
        settings = {"gradient": way, "steps": len(lines), "objective": objective}
        return Recorded(f"{self.name}, {way}", settings, summary, {}, lines, found, None, [])

    def stepwise(self, name: str) -> list[tuple[float, float]]:
        """Return a number over the steps."""
        return [(line["step"], value) for line in self.steps if (value := finite(line, name)) is not None]

    def points(self, name: str) -> list[tuple[float, float]]:
        """Return a number over the steps, thinned to some hundreds of points."""
        return thinned(self.stepwise(name))

    @property
    def stretch(self) -> int:
        """How many steps a point of a curve stands for."""
        return _stretch(len(self.steps))

    def evaluated(self, name: str) -> list[tuple[float, float]]:
        """Return a number over the evaluations."""
        return [(line["step"], value) for line in self.evaluations if (value := finite(line, name)) is not None]


def _plain(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an evaluation measured, as a summary has it."""
    return {name.removeprefix("eval_"): value for name, value in line.items() if name.startswith("eval_")}


def finite(line: Mapping[str, Any], name: str) -> float | None:
    """Return a number of a line, None where there is none, or one that no chart can hold."""
    return number_in(line.get(name))


def number_in(value: Any) -> float | None:
    """Return a value as a number that a chart can hold, None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if -_LARGEST < value < _LARGEST else None


def metrics_of(line: Mapping[str, Any]) -> list[str]:
    """Return the names of what an evaluation measured, as the metrics file has them: `eval_<name>`."""
    return [
        name for name in line if name.startswith("eval_") and name != "eval_examples" and finite(line, name) is not None
    ]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most some hundreds of points: of each stretch its last x and the mean of its y."""
    size = _stretch(len(points))
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(stretch[-1][0], sum(y for _, y in stretch) / len(stretch)) for stretch in stretches]


def _stretch(count: int) -> int:
    return max(1, math.ceil(count / _POINTS))


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines that a run left, each with the number of a step that a chart can hold.

    Raises:
        CheckpointError: one is damaged although a later one is whole.
    """
    found = read_lines(path)
    for number, line in enumerate(found, 1):
        if finite(line, "step") is None:
            raise CheckpointError(f"{path}, line {number}: expected an object with a step. Remove the line.")
    return found


def _sample(path: Path, number: int, line: Mapping[str, Any]) -> Sample:
    if not isinstance(line.get("prompt"), str) or not isinstance(line.get("text"), str):
        raise CheckpointError(f"{path}, line {number}: expected prompt and text, each a text. Remove the line.")
    right = line.get("references")
    references = tuple(map(str, right)) if isinstance(right, list) else ()
    return Sample(int(line["step"]), line["prompt"], line["text"], references)
