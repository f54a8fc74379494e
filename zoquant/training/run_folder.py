"""The folder of a training run: its files, and what may be gone on with."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from zoquant.errors import CheckpointError, OutputExistsError, WriteError, reason_of, shown
from zoquant.files.atomic_files import refuse_existing, replacing_folder, write_text, writing
from zoquant.files.json_lines import append_line, read_lines
from zoquant.files.lock import Lock
from zoquant.files.plain_json import parse_json
from zoquant.record.group import SUBSPACES, Subspace
from zoquant.record.trajectory import Trajectory
from zoquant.tasks import Evaluation
from zoquant.training.config.value import told
from zoquant.training.progress import Progress

_MOST = 1 << 24
"""Bytes of settings or of a calibration."""
SHA256 = "_sha256"
"""How the name of a setting ends that holds the sha256 of rows."""
_OF_A_STEP = ("step", "loss", "derivative", "seconds", "overhead")
"""Numbers that the metrics of a step have."""


class RunFolder:
    """The files of a run.

    Attributes:
        path: the folder.
        settings, config, calibration, metrics, samples, delta, trajectory, summary, card: its files.
        delta: where there is data to test on, that of the step that did best on held-out data; else that of the last.
        journal: the trajectory while the run is under way.
        state, best, forward: of a run by backwards, where it stands, its best delta so far, the forwards that follow.
        micro_batches: at which steps batches were halved, if memory ran out.
        lock: who trains here now; held from `begin` or `resume` to `release`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.json"
        self.config = self.path / "config.toml"
        self.metrics = self.path / "metrics.jsonl"
        self.delta = self.path / "delta.safetensors"
        self.trajectory = self.path / "trajectory.safetensors"
        self.journal = self.path / "trajectory.journal"
        self.state = self.path / "descent.safetensors"
        self.best = self.path / "best.safetensors"
        self.calibration = self.path / "calibration.json"
        self.summary = self.path / "summary.json"
        self.card = self.path / "README.md"
        self.samples = self.path / "samples.jsonl"
        self.micro_batches = self.path / "micro_batches.json"
        self.forward = self.path / "forward"
        self.lock = Lock(self.path / "run.lock")

    @property
    def recorded(self) -> Path:
        """The file that holds the steps so far."""
        return self.journal if self.journal.exists() else self.trajectory

    def begin(self, settings: dict[str, Any], config: str | None = None) -> None:
        """Make the folder with the settings in it, and the config if there is one, and take its lock.

        There is no folder without settings.

        Raises:
            OutputExistsError: the folder exists.
            FolderInUseError: another process was quicker.
        """
        self.refuse_existing()
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(self.path) as folder:
            write_text(folder / self.settings.name, json.dumps(settings, indent=1) + "\n")
            if config is not None:
                write_text(folder / self.config.name, config)
        self.lock.acquire()

    def refuse_existing(self) -> None:
        """Refuse a folder that is there already, and one that cannot be.

        Raises:
            OutputExistsError: it holds a run, or something else.
            WriteError: it would lie in a file.
        """
        above = next(place for place in (self.path.parent, *self.path.parents) if place.exists())
        if not above.is_dir():
            raise WriteError(f"{self.path}: {above} is a file, so no folder can lie in it. Choose another place.")
        if self.settings.exists():
            raise OutputExistsError(
                f"{self.path}: already exists and holds a run; nothing is overwritten. Go on with it by --resume, "
                "or choose another name."
            )
        refuse_existing(self.path)

    def release(self) -> None:
        """Give the lock back: another process may go on here."""
        self.lock.release()

    def resume(self, settings: dict[str, Any]) -> Trajectory | None:
        """Take the lock, return the trajectory to go on from, None if there is none yet, and forget later metrics.

        Raises:
            FolderInUseError, CheckpointError: see `take`.
        """
        self.take(settings)
        try:
            source = self.recorded
            trajectory = Trajectory.load(source) if source.exists() else None
            self.forget_after(0 if trajectory is None else len(trajectory.steps))
            return trajectory
        except BaseException:
            self.release()
            raise

    def take(self, settings: dict[str, Any]) -> None:
        """Take the lock of a folder that holds a run of these settings.

        Raises:
            FolderInUseError: another process trains here.
            CheckpointError: the folder holds no run, or one of other settings; they are named.
        """
        self._check_begun()
        self.lock.acquire()
        try:
            self.check(settings)
            for left in self.path.glob(".*.tmp"):  # of a process that was killed as it wrote
                if left.is_file():
                    left.unlink(missing_ok=True)
        except BaseException:
            self.release()
            raise

    def check(self, settings: dict[str, Any], but: Collection[str] = ()) -> None:
        """See that the folder holds a run of these settings; a number that the run found by itself may be given.

        Args:
            settings: what decides the bytes, by name.
            but: names of settings that are not known yet.

        Raises:
            CheckpointError: it holds no run, or one of other settings; they are named.
        """
        self._check_begun()
        before, after = self.read_settings(), json.loads(json.dumps(settings))
        found = {name: value for name, value in (self.read_calibration() or {}).items() if before.get(name) is None}
        others = [
            name
            for name in after | before
            if name not in but and (given := after.get(name)) != before.get(name)
            and (given is None or given != found.get(name))
        ]  # fmt: skip
        if others:
            raise CheckpointError(f"{self.path}: {_differs(others, before, after)}")

    def forget_after(self, done: int) -> None:
        """Forget what metrics and samples tell of steps after the first `done`."""
        for path in (self.metrics, self.samples):
            kept = [line for line in read_lines(path) if line["step"] <= done]
            if path.exists():
                write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def subspace(self) -> Subspace:
        """Return what directions of the run are made of; a CheckpointError where there is no run, or a damaged one."""
        self._check_begun()
        found = self.read_settings().get("subspace")
        if found not in SUBSPACES:
            raise CheckpointError(
                f"{self.settings}: subspace is {shown(found)}, expected one of {', '.join(SUBSPACES)}. Begin a new run."
            )
        return cast(Subspace, found)

    def _check_begun(self) -> None:
        if not self.settings.exists():
            raise CheckpointError(f"{self.path}: holds no run to resume, expected {self.settings.name}. Drop --resume.")

    def read_settings(self) -> dict[str, Any]:
        """Return what decides the bytes of the run, by name; a CheckpointError where the file is missing or damaged."""
        return self._read_json(self.settings)

    def read_summary(self) -> dict[str, Any]:
        """Return what the run came to; a CheckpointError where the file is missing or damaged."""
        return self._read_json(self.summary)

    def read_calibration(self) -> dict[str, Any] | None:
        """Return what `save_calibration` wrote, None if nothing; a CheckpointError where it is damaged."""
        if not self.calibration.exists():
            return None
        found = self._read_json(self.calibration)
        if not (_is_rate(found.get("lr")) and _is_rate(found.get("eps")) and found["eps"] > 0) or (
            found.get("clip") is not None and not (_is_rate(found.get("clip")) and found["clip"] > 0)
        ):
            raise CheckpointError(f"{self.calibration}: expected the numbers lr, eps and clip. Begin a new run.")
        return found

    def save_calibration(self, found: dict[str, Any]) -> None:
        """Write what the calibration measured and chose."""
        write_text(self.calibration, json.dumps(found, indent=1) + "\n")

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            size = path.stat().st_size
            found = parse_json(path.read_bytes()) if size <= _MOST else f"{size} bytes"
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {reason_of(error)}. Begin a new run.") from error
        if not isinstance(found, dict):
            raise CheckpointError(
                f"{path}: cannot be read: expected a JSON object, got {shown(found)}. Begin a new run."
            )
        return found

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of the metrics file; what a kill or a power failure left at its end is left out.

        Raises:
            CheckpointError: a line is damaged although a later one is whole, or lacks a number that a step has.
        """
        lines = read_lines(self.metrics)
        for number, line in enumerate(lines, 1):
            names = _OF_A_STEP if {"loss", "derivative"} & set(line) else ("step",)
            wrong = [name for name in names if not _is_number(line.get(name))]
            if wrong:
                raise CheckpointError(
                    f"{self.metrics}, line {number}: {wrong[0]} is {shown(line.get(wrong[0]))}, expected a "
                    "number. Begin a new run."
                )
        return lines

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
        append_line(self.metrics, line)

    def evaluations(self) -> list[tuple[int, Evaluation]]:
        """Return the evaluations so far, with the steps before each; a CheckpointError where a line is damaged."""
        found = []
        for number, line in enumerate(self.read_metrics(), 1):
            if "eval_primary" not in line:
                continue
            values = {key.removeprefix("eval_"): value for key, value in line.items()}
            try:
                found.append((line["step"], Evaluation.from_dict(values)))
            except (LookupError, TypeError, ValueError, OverflowError) as error:
                raise CheckpointError(
                    f"{self.metrics}, line {number}: the evaluation is damaged: {reason_of(error)}. Begin a new run."
                ) from error
        return found

    def _append_samples(self, step: int, found: Evaluation) -> None:
        for sample in found.samples:
            append_line(self.samples, {"step": step, **asdict(sample)})


def _differs(names: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return what to say of settings that are others than those of the run."""
    settings = [name for name in names if not name.endswith(SHA256)]
    if settings:
        was, now = (", ".join(f"{name} {told(said.get(name))}" for name in settings) for said in (before, after))
        now = now if len(settings) > 1 else told(after.get(settings[0]))
        return f"was begun with {was}, now it is {now}. Resume with the settings of the run."
    name = names[0]
    part = name.removesuffix(SHA256)
    return (
        f"was begun with other rows: those of {part} had sha256 {before.get(name)}, now they have {after.get(name)}. "
        f"Has {after.get(part) or after.get('data')} changed? Bring the rows of the run back, or begin a new one."
    )


def _is_rate(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
