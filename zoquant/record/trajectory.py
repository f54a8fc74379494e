"""The trajectory: all of training as one seed and one scalar a direction. Replaying it needs no forward pass.

Source: MeZO (arXiv 2305.17333, section 2.1 and appendix): the update of a step is lr · derivative · z(seed).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from zoquant.errors import BaseMismatchError, CheckpointError, ValueRangeError
from zoquant.files.atomic_files import load_tensors, save_tensors
from zoquant.kernels.noise.definition import NOISE_VERSION
from zoquant.record.delta import Delta
from zoquant.record.group import SUBSPACES, Group, Subspace
from zoquant.record.journal import Journal, is_journal, read_journal
from zoquant.record.mover import Mover
from zoquant.record.step import Step
from zoquant.views.model_views import Views

_VERSION = 2
_VERSION_OF_GROUPS = 3
_TENSORS = ("seeds", "derivatives", "lr")


@dataclass
class Trajectory:
    """The steps of a run on one base.

    Attributes:
        groups: what moved, and how. All groups share the seeds of a step.
        estimator: name of the estimator that measured the derivatives; replay does not need it.
        subspace: what a direction has numbers for: each value, or each row and column.
        steps: the steps, in order. A step that was undone has derivatives of 0.
    """

    groups: tuple[Group, ...]
    estimator: str = "two-point"
    subspace: Subspace = "values"
    steps: list[Step] = field(default_factory=list)

    @property
    def probes(self) -> int:
        """Directions a step; 0 before the first."""
        return self.steps[0].probes if self.steps else 0

    @property
    def base(self) -> dict[str, str]:
        """The fingerprint of the base of all groups, by key."""
        return {key: print_ for group in self.groups for key, print_ in group.base.items()}

    def prefix(self, steps: int) -> "Trajectory":
        """Return the trajectory as it was after so many steps, or all of them if there are fewer."""
        groups = tuple(replace(group, base=dict(group.base)) for group in self.groups)
        return replace(self, groups=groups, steps=self.steps[:steps])

    def copy(self) -> "Trajectory":
        """Return a trajectory that further steps of this one do not reach."""
        return self.prefix(len(self.steps))

    def of(self, group: int) -> "Trajectory":
        """Return the trajectory of one group alone: replayed, it moves that group as the whole run did."""
        return replace(self, groups=(self.groups[group],), steps=[step.of(group) for step in self.steps])

    def header(self) -> dict[str, Any]:
        """Return all but the steps as plain data, with the versions of the file and of the noise."""
        several = len(self.groups) > 1
        return {
            "version": _VERSION_OF_GROUPS if several else _VERSION,
            "noise_version": NOISE_VERSION,
            **({} if several else self.groups[0].to_dict()),
            "estimator": self.estimator,
            "subspace": self.subspace,
            **({"groups": [group.to_dict() for group in self.groups]} if several else {}),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain tensors, strings and dicts that `torch.load(weights_only=True)` reads.

        Returns:
            int64 `seeds` `[steps, probes]` or `[steps, 1]`, float64 `derivatives` `[steps, groups * probes]`, float64
            `lr` `[steps]`, or of several groups `[steps, groups]`, and the header.
        """
        count, groups = len(self.steps), len(self.groups)
        lr = torch.tensor([step.rates for step in self.steps], dtype=torch.float64).view(count, groups)
        seeds = torch.tensor([step.seeds for step in self.steps], dtype=torch.int64)
        derivatives = torch.tensor([step.derivatives for step in self.steps], dtype=torch.float64)
        return {
            "seeds": seeds.view(count, self.seeds(self.probes)),
            "derivatives": derivatives.view(count, groups * self.probes),
            "lr": lr if groups > 1 else lr[:, 0].contiguous(),
            **self.header(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], what: str = "trajectory") -> "Trajectory":
        """Build a trajectory from what `to_dict` returned; messages begin with `what`.

        Raises:
            CheckpointError: another version, a part is missing, or they do not fit together.
            ValueRangeError: a number is NaN, infinite or more than float32 holds.
        """
        run = cls._from_header(state, what)
        seeds, derivatives, lr = (state.get(name) for name in _TENSORS)
        if not all(isinstance(each, Tensor) for each in (seeds, derivatives, lr)):
            raise CheckpointError(f"{what}: expected {', '.join(_TENSORS)}. Is the file whole?")
        seeds, derivatives, lr = cast(tuple[Tensor, Tensor, Tensor], (seeds, derivatives, lr))
        if not _fits(seeds, derivatives, lr, len(run.groups)):
            raise CheckpointError(f"{what}: the parts do not fit together. Is the file whole?")
        rows = zip(seeds.tolist(), derivatives.tolist(), lr.view(len(lr), len(run.groups)).tolist(), strict=True)
        return run._with_steps([Step(*map(tuple, row)) for row in rows], what)

    @classmethod
    def _from_header(cls, state: Mapping[str, Any], what: str) -> "Trajectory":
        """Return the trajectory of a header, without a step."""
        groups = state.get("groups")
        version = _VERSION if groups is None else _VERSION_OF_GROUPS
        for name, expected in (("version", version), ("noise_version", NOISE_VERSION)):
            if state.get(name) != expected:
                raise CheckpointError(
                    f"{what}: trajectory of {name.replace('_', ' ')} {state.get(name)}, expected {expected}. Replay it "
                    "with the zoquant that wrote it, and use its delta here."
                )
        several = isinstance(groups, list) and len(groups) > 1 and all(isinstance(each, dict) for each in groups)
        if not (groups is None or several) or state.get("subspace") not in SUBSPACES:
            raise CheckpointError(f"{what}: the parts do not fit together. Is the file whole?")
        found = tuple(Group.from_dict(each, what) for each in ([state] if groups is None else groups))
        if state["subspace"] != "values" and any(group.space != "relative" for group in found):
            raise CheckpointError(f"{what}: the parts do not fit together. Is the file whole?")
        return cls(found, str(state.get("estimator")), state["subspace"])

    def _with_steps(self, steps: list[Step], what: str) -> "Trajectory":
        """Return the same with steps, once it is sure that a run could have written them."""
        if any(len(step.seeds) != self.seeds(step.probes) for step in steps):
            raise CheckpointError(f"{what}: the parts do not fit together. Is the file whole?")
        for number, step in enumerate(steps):
            if fault := self.fault_of(step):
                raise ValueRangeError(f"{what}: step {number} {fault}. Nothing was changed.")
        return replace(self, steps=steps)

    def fault_of(self, step: Step) -> str:
        """Say why no run of these groups would have done a step, of whatever origin; nothing if one could."""
        for rate, group in zip(step.rates, self.groups, strict=True):
            if rate < 0 or rate * group.decay > 1:
                return f"has a rate of {rate:g} with a decay of {group.decay:g}, expected from 0 to 1 / decay"
        return step.fault()

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that holds what `to_dict` returns.

        Raises:
            WriteError: the file could not be written.
        """
        state = self.to_dict()
        tensors = {name: state.pop(name) for name in _TENSORS}
        save_tensors(Path(path), tensors, {"kind": "trajectory", **state})

    def journal(self, path: str | Path, probes: int) -> Journal:
        """Begin a journal of so many directions a step that holds the steps so far; a file that exists is replaced.

        Raises:
            WriteError: the file could not be written.
        """
        header = {"kind": "trajectory", **self.header()}
        return Journal(Path(path), header, probes, self.steps, seeds=self.seeds(probes))

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read a trajectory: a finished one, or the journal of a run that may still go on.

        Raises:
            CheckpointError: not a trajectory, of another version, or damaged.
            ValueRangeError: a number is NaN, infinite or more than float32 holds.
        """
        if is_journal(Path(path)):
            header, steps = read_journal(Path(path))
            return cls._from_header(header, str(path))._with_steps(steps, str(path))
        tensors, metadata = load_tensors(Path(path), "trajectory")
        return cls.from_dict({**metadata, **tensors}, str(path))

    def check(self, views: Views | Sequence[Views], what: str = "trajectory") -> None:
        """Refuse views, or those of each group in order, that this trajectory was not made on.

        Raises:
            BaseMismatchError: base, keys, coupling or the number of groups differ; the message begins with `what`.
        """
        each = groups_of(views)
        if len(each) != len(self.groups):
            raise BaseMismatchError(
                f"{what}: made of {len(self.groups)} groups of views, got {len(each)}. Pass the views of each group, "
                "in the order of the run."
            )
        for group, here in zip(self.groups, each, strict=True):
            group.check(here, what)

    def movers(self, views: Sequence[Views]) -> list[Mover]:
        """Return what moves the deltas of the views of each group as the steps of this run say.

        Raises:
            UnsupportedLayoutError: the run moved rows and columns, and a layer of these views has none.
        """
        return [group.mover(here, self.subspace) for group, here in zip(self.groups, views, strict=True)]

    def deltas(self, views: Views | Sequence[Views]) -> list[list[Tensor]]:
        """Return what the run added, of each group one a buffer of its views, which stay as they are; no check."""
        found = []
        for number, (group, here) in enumerate(zip(self.groups, groups_of(views), strict=True)):
            deltas = [torch.zeros_like(buffer.delta) for buffer in here.buffers]
            group.mover(here, self.subspace, deltas).advance([step.of(number) for step in self.steps])
            found.append(deltas)
        return found

    def delta(self, views: Views) -> Delta:
        """Return what the run added to its base. The views, and their model, stay as they are.

        Raises:
            BaseMismatchError: see `check`; of several groups each has its own, `trajectory.of(group).delta(views)`.
        """
        self.check(views)
        (deltas,) = self.deltas(views)
        values = {
            view.name: delta[buffer.slice_of(index)].view(view.shape).to("cpu", copy=True)  # views may share it
            for buffer, delta in zip(views.buffers, deltas, strict=True)
            for index, view in enumerate(buffer.views)
        }
        return Delta({key: values[key] for key in views.keys}, self.base, self.groups[0].space)

    def seeds(self, probes: int) -> int:
        """Return how many seeds a step keeps: those of the directions of rows and columns are drawn from one."""
        return probes if self.subspace == "values" else 1


def groups_of(views: Views | Sequence[Views]) -> list[Views]:
    """Return the views of each group."""
    return [views] if isinstance(views, Views) else list(views)


def _fits(seeds: Tensor, derivatives: Tensor, lr: Tensor, groups: int) -> bool:
    """Whether tensors hold the steps of so many groups."""
    if not (seeds.dim() == derivatives.dim() == 2 and derivatives.shape[1] % groups == 0):
        return False
    typed = (seeds.dtype, derivatives.dtype, lr.dtype) == (torch.int64, torch.float64, torch.float64)
    shaped = len(seeds) == len(derivatives) and lr.shape == ((len(seeds),) if groups == 1 else (len(seeds), groups))
    return typed and shaped and bool((seeds >= 0).all())
