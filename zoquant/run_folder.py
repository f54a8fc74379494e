"""The folder of a training run: its files, and what may be gone on with."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoquant.calibration import Calibration
from zoquant.errors import CheckpointError
from zoquant.files import refuse_existing, write_text, writing
from zoquant.optim import StepResult
from zoquant.tasks import Evaluation
from zoquant.trajectory import Trajectory


@dataclass(frozen=True)
class Progress:
    """What a run reports after each step and each evaluation.

    Attributes:
        step: steps done.
        steps: steps in all.
        result: what the last step saw; None for an evaluation before the first.
        evaluation: the evaluation made after this step, if any.
        seconds: time of the step.
        forward_seconds: mean time of its forwards.
        calibration: what was chosen before the first step, and why.
        skipped: why the step was undone and counts for nothing; None for one that was done.
        overhead: time of the step ÷ time of its forwards.
    """

    step: int
    steps: int
    result: StepResult | None
    evaluation: Evaluation | None
    seconds: float
    forward_seconds: float
    calibration: Calibration | None = None
    skipped: str | None = None
    overhead: float = math.nan


class RunFolder:
    """The files of a run.

    Attributes:
        path: the folder.
        settings, config, calibration, metrics, samples, delta, trajectory, summary, plot, card: its files.
        journal: the trajectory while the run is under way.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.json"
        self.config = self.path / "config.toml"
        self.metrics = self.path / "metrics.jsonl"
        self.delta = self.path / "delta.safetensors"
        self.trajectory = self.path / "trajectory.safetensors"
        self.journal = self.path / "trajectory.journal"
        self.calibration = self.path / "calibration.json"
        self.summary = self.path / "summary.json"
        self.plot = self.path / "loss.png"
        self.card = self.path / "README.md"
        self.samples = self.path / "samples.jsonl"

    def begin(self, settings: dict[str, Any], config: str | None = None) -> None:
        """Make the folder and write the settings, and the config file if there is one.

        Raises:
            OutputExistsError: the folder exists.
        """
        refuse_existing(self.path)
        with writing(self.path):
            self.path.mkdir(parents=True)
        write_text(self.settings, json.dumps(settings, indent=1) + "\n")
        if config is not None:
            write_text(self.config, config)

    def resume(self, settings: dict[str, Any]) -> Trajectory | None:
        """Return the trajectory to go on from, None if the run saved nothing yet, and forget later metrics.

        Raises:
            CheckpointError: the folder holds no run, or one of other settings; the first one is named.
        """
        if not self.settings.exists():
            raise CheckpointError(f"{self.path}: holds no run to resume, expected {self.settings.name}. Drop --resume.")
        before = self.read_settings()
        after = json.loads(json.dumps(settings))
        for name in after | before:
            if before.get(name) != after.get(name):
                raise CheckpointError(
                    f"{self.path}: was begun with {name}={before.get(name)!r}, now it is {after.get(name)!r}. Resume "
                    "with the settings of the run."
                )
        source = self.journal if self.journal.exists() else self.trajectory
        trajectory = Trajectory.load(source) if source.exists() else None
        done = 0 if trajectory is None else len(trajectory.steps)
        for path in (self.metrics, self.samples):
            kept = [line for line in _read_lines(path) if line["step"] <= done]
            if path.exists():
                write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        return trajectory

    def read_settings(self) -> dict[str, Any]:
        """Return what decides the bytes of the run, by name.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        return self._read_json(self.settings)

    def read_summary(self) -> dict[str, Any]:
        """Return what the run came to.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        return self._read_json(self.summary)

    def read_calibration(self) -> dict[str, Any] | None:
        """Return what `save_calibration` wrote, None if there was no calibration.

        Raises:
            CheckpointError: the file is damaged.
        """
        return self._read_json(self.calibration) if self.calibration.exists() else None

    def save_calibration(self, found: dict[str, Any]) -> None:
        """Write what the calibration measured and chose."""
        write_text(self.calibration, json.dumps(found, indent=1) + "\n")

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}. Begin a new run.") from error
        return found

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of the metrics file; a last line that was cut off is left out."""
        return _read_lines(self.metrics)

    def read_samples(self) -> list[dict[str, Any]]:
        """Return the lines of the samples file: generations of each evaluation, with its step."""
        return _read_lines(self.samples)

    def append_metrics(self, progress: Progress) -> None:
        """Add one line to the metrics file."""
        line: dict[str, Any] = {"step": progress.step, "seconds": progress.seconds}
        if progress.result is not None:
            line |= asdict(progress.result) | {"step": progress.step, "overhead": progress.overhead}
        if progress.skipped is not None:
            line["skipped"] = progress.skipped
        if progress.evaluation is not None:
            line |= {f"eval_{name}": value for name, value in progress.evaluation.to_dict().items()}
            self._append_samples(progress.step, progress.evaluation)
        self._append(self.metrics, line)

    def evaluations(self) -> list[tuple[int, Evaluation]]:
        """Return the evaluations so far, with the number of steps before each."""
        return [
            (line["step"], Evaluation.from_dict({key.removeprefix("eval_"): value for key, value in line.items()}))
            for line in self.read_metrics()
            if "eval_primary" in line
        ]

    def _append_samples(self, step: int, found: Evaluation) -> None:
        for sample in found.samples:
            self._append(self.samples, {"step": step, **asdict(sample)})

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
