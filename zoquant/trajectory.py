"""The trajectory: all of training as one seed and one scalar a direction. Replaying it needs no forward pass.

Source: MeZO (arXiv 2305.17333, section 2.1 and appendix): the update of a step is lr · derivative · z(seed).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch

from zoquant.attach import Views
from zoquant.buffer import SPACES, Space
from zoquant.errors import CheckpointError, ValueRangeError
from zoquant.files import load_tensors, save_tensors
from zoquant.fingerprint import check_base
from zoquant.noise import KINDS, Kind

_VERSION = 1


@dataclass(frozen=True)
class Step:
    """One step: its directions, the derivative along each as it was applied, and the learning rate."""

    seeds: tuple[int, ...]
    derivatives: tuple[float, ...]
    lr: float


@dataclass
class Trajectory:
    """The steps of a run on one base.

    Attributes:
        base: fingerprint of the base by key.
        space: what delta means.
        noise: distribution of the directions.
        steps: the steps, in order. A step that was undone has derivatives of 0.
    """

    base: dict[str, str]
    space: Space = "relative"
    noise: Kind = "rademacher"
    steps: list[Step] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: int64 `seeds` and float64 `derivatives` `[steps, probes]`, float64 `lr` `[steps]`.

        Raises:
            WriteError: the file could not be written.
        """
        probes = len(self.steps[0].seeds) if self.steps else 0
        shape = (len(self.steps), probes)
        tensors = {
            "seeds": torch.tensor([s.seeds for s in self.steps], dtype=torch.int64).view(shape),
            "derivatives": torch.tensor([s.derivatives for s in self.steps], dtype=torch.float64).view(shape),
            "lr": torch.tensor([s.lr for s in self.steps], dtype=torch.float64),
        }
        metadata = {
            "kind": "trajectory", "version": _VERSION, "space": self.space, "noise": self.noise, "base": self.base
        }  # fmt: skip
        save_tensors(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read a trajectory.

        Raises:
            CheckpointError: not a trajectory, of a newer version, or truncated.
            ValueRangeError: a number is NaN or infinite.
        """
        tensors, metadata = load_tensors(Path(path), "trajectory")
        if metadata.get("version") != _VERSION:
            raise CheckpointError(
                f"{path}: trajectory of version {metadata.get('version')}, expected {_VERSION}. Update zoquant."
            )
        base, space, noise = metadata.get("base"), metadata.get("space"), metadata.get("noise")
        seeds, derivatives, lr = (tensors.get(name) for name in ("seeds", "derivatives", "lr"))
        if seeds is None or derivatives is None or lr is None or not isinstance(base, dict):
            raise CheckpointError(f"{path}: expected seeds, derivatives, lr and a base. Is the file whole?")
        if seeds.shape != derivatives.shape or seeds.shape[:1] != lr.shape or space not in SPACES or noise not in KINDS:
            raise CheckpointError(f"{path}: the parts do not fit together. Is the file whole?")
        if not (torch.isfinite(derivatives).all() and torch.isfinite(lr).all()):
            raise ValueRangeError(f"{path}: a derivative or rate is NaN or infinite. Nothing was changed.")
        rows = zip(seeds.tolist(), derivatives.tolist(), lr.tolist(), strict=True)
        steps = [Step(tuple(s), tuple(d), rate) for s, d, rate in rows]
        return cls(base, cast(Space, space), cast(Kind, noise), steps)


def apply_step(views: Views, step: Step, noise: Kind) -> None:
    """Move the deltas by one step: delta ← delta − lr · mean over probes of derivative · z. Writes no view."""
    for seed, derivative in zip(step.seeds, step.derivatives, strict=True):
        amount = -step.lr * derivative / len(step.seeds)
        if amount:
            views.add(seed, amount, noise)


def replay(trajectory: str | Path | Trajectory, views: Views, *, steps: int | None = None) -> Sequence[Step]:
    """Do a run again from its trajectory: afterwards every byte is what the run left.

    Args:
        trajectory: the trajectory or its file.
        views: views of the same base, in any order.
        steps: stop after so many steps; None does all.

    Returns:
        The steps that were done.

    Raises:
        BaseMismatchError: the trajectory was made on another base, or on other views.
        CheckpointError, ValueRangeError: the file is damaged. Nothing has changed.
    """
    what = "trajectory" if isinstance(trajectory, Trajectory) else str(trajectory)
    run = trajectory if isinstance(trajectory, Trajectory) else Trajectory.load(trajectory)
    here = views.fingerprints()
    check_base(what, run.base, here)
    check_base("these views", here, run.base)
    for buffer in views.buffers:
        buffer.delta.zero_()
    views.space = run.space
    done = run.steps[:steps]
    for step in done:
        apply_step(views, step, run.noise)
    views.write()
    return done
