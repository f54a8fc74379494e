"""The trajectory: all of training as one seed and one scalar a direction. Replaying it needs no forward pass.

Source: MeZO (arXiv 2305.17333, section 2.1 and appendix): the update of a step is lr · derivative · z(seed).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from zoquant.attach import Views
from zoquant.buffer import SPACES, Space
from zoquant.errors import BaseMismatchError, CheckpointError, ValueRangeError
from zoquant.files import load_tensors, save_tensors
from zoquant.fingerprint import check_base
from zoquant.noise import KINDS, Kind

_VERSION = 1
_TENSORS = ("seeds", "derivatives", "lr")


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
        coupled: whether the views of one layer, role and shape shared their delta.
        steps: the steps, in order. A step that was undone has derivatives of 0.
    """

    base: dict[str, str]
    space: Space = "relative"
    noise: Kind = "rademacher"
    coupled: bool = False
    steps: list[Step] = field(default_factory=list)

    @property
    def probes(self) -> int:
        """Directions a step; 0 before the first."""
        return len(self.steps[0].seeds) if self.steps else 0

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that holds what `to_dict` returns.

        Raises:
            WriteError: the file could not be written.
        """
        state = self.to_dict()
        tensors = {name: state.pop(name) for name in _TENSORS}
        save_tensors(Path(path), tensors, {"kind": "trajectory", "version": _VERSION, **state})

    def to_dict(self) -> dict[str, Any]:
        """Return plain tensors, strings and dicts that `torch.load(weights_only=True)` reads.

        Returns:
            int64 `seeds` and float64 `derivatives` `[steps, probes]`, float64 `lr` `[steps]`, `space`, `noise`,
            `coupled`, `base`.
        """
        shape = (len(self.steps), self.probes)
        return {
            "seeds": torch.tensor([s.seeds for s in self.steps], dtype=torch.int64).view(shape),
            "derivatives": torch.tensor([s.derivatives for s in self.steps], dtype=torch.float64).view(shape),
            "lr": torch.tensor([s.lr for s in self.steps], dtype=torch.float64),
            "space": self.space,
            "noise": self.noise,
            "coupled": self.coupled,
            "base": dict(self.base),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], what: str = "trajectory") -> "Trajectory":
        """Build a trajectory from what `to_dict` returned.

        Args:
            state: the parts.
            what: where they come from, for the messages.

        Raises:
            CheckpointError: a part is missing, or they do not fit together.
            ValueRangeError: a number is NaN or infinite.
        """
        base, space, noise, coupled = (state.get(name) for name in ("base", "space", "noise", "coupled"))
        seeds, derivatives, lr = (state.get(name) for name in _TENSORS)
        if seeds is None or derivatives is None or lr is None or not isinstance(base, dict):
            raise CheckpointError(f"{what}: expected {', '.join(_TENSORS)} and a base. Is the file whole?")
        fits = seeds.dim() == 2 and seeds.shape == derivatives.shape and seeds.shape[:1] == lr.shape
        typed = (seeds.dtype, derivatives.dtype, lr.dtype) == (torch.int64, torch.float64, torch.float64)
        known = space in SPACES and noise in KINDS and isinstance(coupled, bool)
        if not (fits and typed and known and (seeds >= 0).all()):
            raise CheckpointError(f"{what}: the parts do not fit together. Is the file whole?")
        if not (torch.isfinite(derivatives).all() and torch.isfinite(lr).all()):
            raise ValueRangeError(f"{what}: a derivative or rate is NaN or infinite. Nothing was changed.")
        rows = zip(seeds.tolist(), derivatives.tolist(), lr.tolist(), strict=True)
        steps = [Step(tuple(s), tuple(d), rate) for s, d, rate in rows]
        return cls(dict(base), cast(Space, space), cast(Kind, noise), bool(coupled), steps)

    def copy(self) -> "Trajectory":
        """Return a trajectory that further steps of this one do not reach."""
        return replace(self, base=dict(self.base), steps=list(self.steps))

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read a trajectory.

        Raises:
            CheckpointError: not a trajectory, of a newer version, or damaged.
            ValueRangeError: a number is NaN or infinite.
        """
        tensors, metadata = load_tensors(Path(path), "trajectory")
        if metadata.get("version") != _VERSION:
            raise CheckpointError(
                f"{path}: trajectory of version {metadata.get('version')}, expected {_VERSION}. Update zoquant."
            )
        return cls.from_dict({**metadata, **tensors}, str(path))


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
    if views.coupled != run.coupled:
        raise BaseMismatchError(
            f"{what}: made with coupled={run.coupled}, these views have coupled={views.coupled}. Attach as the run did."
        )
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
