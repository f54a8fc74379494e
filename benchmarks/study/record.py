"""The runs on disk: a result is a JSON file; what is not finished has a draft, and is held by one process at a time."""

import fcntl
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.study.rows import Row
from zoquant.files.atomic_files import write_text
from zoquant.tasks import Evaluation

Result = dict[str, Any]


class SkippedError(Exception):
    """A run cannot be done here; the message says why."""


class TimeUpError(Exception):
    """The minutes of this slice are over."""


@dataclass(frozen=True)
class Draft:
    """What an unfinished run keeps.

    Attributes:
        path: its state, JSON.
    """

    path: Path

    @property
    def journal(self) -> Path:
        """The steps of a zeroth-order run."""
        return self.path.with_suffix(".journal")

    @property
    def tensors(self) -> Path:
        """Values and moments of a first-order run."""
        return self.path.with_suffix(".pt")

    def begin(self, compute_dtype: str) -> None:
        """Begin the draft, or see that the one that is there goes on in the dtype that it was begun in.

        Args:
            compute_dtype: of the matrix products, which machines differ in.

        Raises:
            SkippedError: it was begun in another one.
        """
        begun = self.read() or {"compute_dtype": compute_dtype}
        if begun["compute_dtype"] != compute_dtype:
            raise SkippedError(
                f"{self.path} was begun in {begun['compute_dtype']}, and this machine has {compute_dtype}"
            )
        self.write(begun)

    def read(self) -> Result:
        """Return the state, empty at first."""
        found: Result = json.loads(self.path.read_text()) if self.path.exists() else {}
        return found

    def write(self, state: Result) -> None:
        """Replace the state, whole or not at all."""
        write_text(self.path, json.dumps(state) + "\n")

    def remove(self) -> None:
        """Delete all of it."""
        for path in (self.path, self.journal, self.tensors):
            path.unlink(missing_ok=True)


class Records:
    """The folder of the results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, row: Row, seed: int) -> Result | None:
        """Return the result of a run, or None."""
        path = self._path(row, seed)
        return json.loads(path.read_text()) if path.exists() else None

    def of(self, row: Row) -> list[Result]:
        """Return the results of a line, by seed."""
        return [found for seed in row.seeds if (found := self.read(row, seed)) is not None]

    def write(self, row: Row, seed: int, result: Result) -> None:
        """Write the result of a run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self._path(row, seed), json.dumps(result, indent=1) + "\n")

    @contextmanager
    def draft(self, row: Row, seed: int) -> Iterator[Draft | None]:
        """Hold a run while this process works on it: its draft, or None if another process has it."""
        path = self.folder / "unfinished" / self._path(row, seed).name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield Draft(path)

    def keep(self, name: str, make: Callable[[], Result]) -> Result:
        """Return what several runs have in common; it is made when it is not there."""
        path = self.folder / name
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(make(), indent=1) + "\n")
        found: Result = json.loads(path.read_text())
        return found

    def _path(self, row: Row, seed: int) -> Path:
        name = re.sub(r"[^a-z0-9.]+", "-", row.name.lower()).strip("-")
        return self.folder / f"{name}.{seed}.json"


def point(forwards: float, found: Evaluation) -> Result:
    """Return an evaluation as plain data; a loss that is not finite is None."""
    loss = found.loss if math.isfinite(found.loss) else None
    return {"forwards": forwards, "accuracy": found.accuracy, "loss": loss, "examples": found.examples}
