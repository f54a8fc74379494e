"""When a forward does not fit in memory: the batch goes through in halves, and the step is done again.

The loss of a step stays the mean over its batch: it is the mean of the parts' losses, each weighted by how many
examples or tokens it holds. All evaluations of a step see the same parts, so that a derivative is the difference
quotient of one function; in a process group all ranks halve together, whichever of them ran out. Sums of parts are
rounded otherwise than the whole, so the parts decide bytes: the run folder keeps the step at which each halving began,
and a run that goes on cuts every batch as the first run would have.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from zoquant.distributed.launch import from_first
from zoquant.errors import CheckpointError, DoesNotFitError, one_line, reason_of
from zoquant.files.atomic_files import write_text
from zoquant.files.plain_json import parse_json
from zoquant.kernels.out_of_memory import is_out_of_memory, release_memory

_MOST = 64
"""Halvings that a file may name: no batch has 2⁶⁴ examples."""

T = TypeVar("T")
log = logging.getLogger("zoquant")


class Divisible(Protocol):
    """What is asked of a batch: its weight in a mean, and its halves."""

    @property
    def weight(self) -> float:
        """How many examples or tokens the loss is the mean of."""

    def halves(self) -> Sequence[Any]:
        """Return two batches of about half the examples each."""


class MicroBatches:
    """How the batches of a run are cut.

    Args:
        path: the file that keeps it; it is made at the first halving.

    Raises:
        CheckpointError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._halved_at = _read(path)

    def halvings(self, step: int) -> int:
        """Return how many times the batch of a step is halved."""
        return sum(start <= step for start in self._halved_at)

    def agree(self) -> None:
        """Cut as rank 0 does: it alone has calibrated, and has read what an earlier life of the run wrote."""
        self._halved_at = from_first(self._halved_at)

    def fit(self, step: int, batches: Sequence[Divisible], call: Callable[[list[list[Any]]], T]) -> T:
        """Call with the parts of each batch; as long as that runs out of memory, halve and call again.

        Args:
            step: number of the step, from 0.
            batches: the batches of the call; those of a task that cannot halve them are not cut.
            call: gets the parts of each batch, and leaves everything as it was if it raises.

        Returns:
            What the call returned.

        Raises:
            DoesNotFitError: the parts are single examples.
            WriteError: the halving cannot be written down.
        """
        while True:
            parts = [_cut(batch, self.halvings(step)) for batch in batches]
            try:
                return call(parts)
            except Exception as error:
                if not is_out_of_memory(error) or not all(hasattr(batch, "halves") for batch in batches):
                    raise
                said = one_line(error, 200)
            # Out here the error is gone, and with it the activations that its frames held.
            release_memory()
            self._halve(step, batches, said)

    def _halve(self, step: int, batches: Sequence[Divisible], said: str) -> None:
        times = self.halvings(step)
        now = max(len(_cut(batch, times)) for batch in batches)
        then = max(len(_cut(batch, times + 1)) for batch in batches)
        if then == now:
            raise DoesNotFitError(
                f"step {step}: one example alone does not fit in memory: {said}. The step was undone; shorten the "
                "examples, take a smaller compute_dtype, or more memory."
            )
        halved = [*self._halved_at, step]
        write_text(self.path, json.dumps({"halved_at": halved}) + "\n")
        self._halved_at = halved
        log.warning(
            "step %d: out of memory (%s). From here on a batch goes through the model in %d parts, weighted to the "
            "same mean; %s keeps this.", step, said, then, self.path.name,
        )  # fmt: skip


def _cut(batch: Divisible, halvings: int) -> list[Any]:
    """Return the parts of a batch; one that holds a single example stays whole."""
    parts: list[Any] = [batch]
    for _ in range(halvings):
        parts = [half for part in parts for half in _halves(part)]
    return parts


def _halves(part: Divisible) -> list[Any]:
    return [half for half in part.halves() if half.weight] if part.weight > 1 else [part]


def _read(path: Path) -> list[int]:
    if not path.exists():
        return []
    try:
        found = parse_json(path.read_bytes()) if path.stat().st_size < 1 << 16 else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {reason_of(error)}. Begin a new run.") from error
    steps = found.get("halved_at") if isinstance(found, dict) else None
    if not isinstance(steps, list) or len(steps) > _MOST or not all(type(n) is int and n >= 0 for n in steps):
        raise CheckpointError(f"{path}: expected the steps of the halvings, got something else. Begin a new run.")
    return steps
