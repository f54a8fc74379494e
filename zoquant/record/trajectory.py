"""The trajectory: all of training as one seed and one scalar a direction. Replaying it needs no forward pass.

Source: MeZO (arXiv 2305.17333, section 2.1 and appendix): the update of a step is lr · derivative · z(seed).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from zoquant.errors import BaseMismatchError, CheckpointError, ValueRangeError
from zoquant.files.atomic_files import load_tensors, save_tensors
from zoquant.kernels.noise.definition import NOISE_VERSION, Noise
from zoquant.record.delta import Delta
from zoquant.record.journal import Journal, is_journal, read_journal
from zoquant.record.mover import Mover, Step
from zoquant.record.rows_and_columns import SUBSPACES, FactorMover, Subspace
from zoquant.record.rules import SGD, Rule, rule_from_dict, rule_to_dict
from zoquant.views.fingerprint import check_base
from zoquant.views.flat_buffer import SPACES, Space
from zoquant.views.model_views import Views

_VERSION = 2
_TENSORS = ("seeds", "derivatives", "lr")
_FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass
class Trajectory:
    """The steps of a run on one base.

    Attributes:
        base: fingerprint of the base by key.
        space: what delta means.
        noise: distribution of the directions.
        coupled: whether the views of one layer, role and shape shared their delta.
        estimator: name of the estimator that measured the derivatives; replay does not need it.
        rule: update rule.
        decay: pull back to the base, per unit of lr.
        steps: the steps, in order. A step that was undone has derivatives of 0.
        subspace: what a direction is made of: a number for each value, or one for each row and column, see
            `zoquant.record.rows_and_columns`.
    """

    base: dict[str, str]
    space: Space = "relative"
    noise: Noise = field(default_factory=Noise)
    coupled: bool = False
    estimator: str = "two-point"
    rule: Rule = field(default_factory=SGD)
    decay: float = 0.0
    steps: list[Step] = field(default_factory=list)
    subspace: Subspace = "values"

    @property
    def probes(self) -> int:
        """Directions a step; 0 before the first."""
        return len(self.steps[0].derivatives) if self.steps else 0

    def prefix(self, steps: int) -> "Trajectory":
        """Return the trajectory as it was after so many steps, or all of them if there are fewer."""
        return replace(self, base=dict(self.base), steps=self.steps[:steps])

    def copy(self) -> "Trajectory":
        """Return a trajectory that further steps of this one do not reach."""
        return self.prefix(len(self.steps))

    def header(self) -> dict[str, Any]:
        """Return all but the steps as plain data, with the versions of the file and of the noise."""
        return {
            "version": _VERSION,
            "noise_version": NOISE_VERSION,
            "space": self.space,
            "noise": self.noise.to_dict(),
            "coupled": self.coupled,
            "estimator": self.estimator,
            "rule": rule_to_dict(self.rule),
            "decay": self.decay,
            "subspace": self.subspace,
            "base": dict(self.base),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain tensors, strings and dicts that `torch.load(weights_only=True)` reads.

        Returns:
            int64 `seeds` `[steps, probes]` or `[steps, 1]`, float64 `derivatives` `[steps, probes]`, float64 `lr`
            `[steps]`, and the header.
        """
        count, seeds = len(self.steps), self._seeds(self.probes)
        return {
            "seeds": torch.tensor([s.seeds for s in self.steps], dtype=torch.int64).view(count, seeds),
            "derivatives": torch.tensor([s.derivatives for s in self.steps], dtype=torch.float64).view(
                count, self.probes
            ),
            "lr": torch.tensor([s.lr for s in self.steps], dtype=torch.float64),
            **self.header(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], what: str = "trajectory") -> "Trajectory":
        """Build a trajectory from what `to_dict` returned.

        Args:
            state: the parts.
            what: where they come from, for the messages.

        Raises:
            CheckpointError: another version, a part is missing, or they do not fit together.
            ValueRangeError: a number is NaN or infinite.
        """
        seeds, derivatives, lr = (state.get(name) for name in _TENSORS)
        if seeds is None or derivatives is None or lr is None:
            raise CheckpointError(f"{what}: expected {', '.join(_TENSORS)}. Is the file whole?")
        fits = (
            seeds.dim() == derivatives.dim() == 2
            and seeds.shape[1] in (1, derivatives.shape[1])
            and seeds.shape[:1] == derivatives.shape[:1] == lr.shape
        )
        typed = (seeds.dtype, derivatives.dtype, lr.dtype) == (torch.int64, torch.float64, torch.float64)
        if not (fits and typed and (seeds >= 0).all()):
            raise CheckpointError(f"{what}: the parts do not fit together. Is the file whole?")
        if not (torch.isfinite(derivatives).all() and torch.isfinite(lr).all()):
            raise ValueRangeError(f"{what}: a derivative or rate is NaN or infinite. Nothing was changed.")
        rows = zip(seeds.tolist(), derivatives.tolist(), lr.tolist(), strict=True)
        return cls._from_header(state, [Step(tuple(s), tuple(d), rate) for s, d, rate in rows], what)

    @classmethod
    def _from_header(cls, state: Mapping[str, Any], steps: list[Step], what: str) -> "Trajectory":
        for name, expected in (("version", _VERSION), ("noise_version", NOISE_VERSION)):
            if state.get(name) != expected:
                raise CheckpointError(
                    f"{what}: trajectory of {name.replace('_', ' ')} {state.get(name)}, expected {expected}. Replay it "
                    "with the zoquant that wrote it, and use its delta here."
                )
        base, space, coupled, decay, subspace = (
            state.get(name) for name in ("base", "space", "coupled", "decay", "subspace")
        )
        typed = isinstance(coupled, bool) and isinstance(decay, float) and 0 <= decay < math.inf
        typed &= isinstance(base, dict) and all(isinstance(print_, str) for print_ in base.values())
        if not (typed and space in SPACES and subspace in SUBSPACES):
            raise CheckpointError(f"{what}: the parts do not fit together. Is the file whole?")
        try:
            noise, rule = Noise(**state["noise"]), rule_from_dict(state["rule"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{what}: the header is not that of a trajectory: {error} Update zoquant.") from error
        _check_lengths(what, steps)
        return cls(
            cast(dict[str, str], base), cast(Space, space), noise, bool(coupled), str(state.get("estimator")), rule,
            cast(float, decay), steps, cast(Subspace, subspace),
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that holds what `to_dict` returns.

        Raises:
            WriteError: the file could not be written.
        """
        state = self.to_dict()
        tensors = {name: state.pop(name) for name in _TENSORS}
        save_tensors(Path(path), tensors, {"kind": "trajectory", **state})

    def journal(self, path: str | Path, probes: int) -> Journal:
        """Begin a journal that holds the steps so far; further ones are to be appended.

        Args:
            path: the file; replaced if it exists.
            probes: directions a step.

        Raises:
            WriteError: the file could not be written.
        """
        header = {"kind": "trajectory", **self.header()}
        return Journal(Path(path), header, probes, self.steps, seeds=self._seeds(probes))

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read a trajectory: a finished one, or the journal of a run that may still go on.

        Raises:
            CheckpointError: not a trajectory, of another version, or damaged.
            ValueRangeError: a number is NaN or infinite.
        """
        if is_journal(Path(path)):
            header, steps = read_journal(Path(path))
            return cls._from_header(header, steps, str(path))
        tensors, metadata = load_tensors(Path(path), "trajectory")
        return cls.from_dict({**metadata, **tensors}, str(path))

    def check(self, views: Views, what: str = "trajectory") -> None:
        """Refuse views that this trajectory was not made on.

        Raises:
            BaseMismatchError: they have another base, other keys, or are coupled differently.
        """
        if views.coupled != self.coupled:
            raise BaseMismatchError(
                f"{what}: made with coupled={self.coupled}, these views have coupled={views.coupled}. Attach as the "
                "run did."
            )
        here = views.fingerprints()
        check_base(what, self.base, here)
        check_base("these views", here, self.base)

    def mover(self, views: Views, deltas: Sequence[Tensor] | None = None) -> Mover:
        """Return what moves deltas as the steps of this run say.

        Args:
            views: views of the same base.
            deltas: the deltas to move, one a buffer of the views; None for those of the views.

        Raises:
            UnsupportedLayoutError: the run moved rows and columns, and a layer of these views has none.
        """
        if self.subspace == "values":
            return Mover(views.buffers, self.noise, self.rule, self.decay, deltas=deltas)
        return FactorMover(views, self.noise, self.rule, self.decay, deltas=deltas)

    def _seeds(self, probes: int) -> int:
        """Return how many seeds a step keeps: those of the directions of rows and columns are drawn from one."""
        return probes if self.subspace == "values" else 1

    def delta(self, views: Views) -> Delta:
        """Return what the run added to its base. The views, and their model, stay as they are.

        Args:
            views: views of the same base, in any order.

        Raises:
            BaseMismatchError: the trajectory was made on another base, or on other views.
        """
        self.check(views)
        deltas = [torch.zeros_like(buffer.delta) for buffer in views.buffers]
        self.mover(views, deltas).advance(self.steps)
        values = {
            view.name: delta[buffer.slice_of(index)].view(view.shape).to("cpu", copy=True)  # views may share it
            for buffer, delta in zip(views.buffers, deltas, strict=True)
            for index, view in enumerate(buffer.views)
        }
        return Delta({key: values[key] for key in views.keys}, dict(self.base), self.space)


def _check_lengths(what: str, steps: Sequence[Step]) -> None:
    """Refuse what no run writes: a step so long that float32 does not hold it."""
    for number, step in enumerate(steps):
        for amount in step.amounts:
            if not max(abs(amount), abs(step.lr * amount)) <= _FLOAT32_MAX:
                raise ValueRangeError(
                    f"{what}: step {number} moves by {step.lr:g} times {amount:g}, more than float32 holds. Nothing "
                    "was changed."
                )


def replay(trajectory: str | Path | Trajectory, views: Views, *, steps: int | None = None) -> Sequence[Step]:
    """Do a run again from its trajectory: afterwards every byte is what the run left.

    Args:
        trajectory: the trajectory, its file or its journal.
        views: views of the same base, in any order.
        steps: stop after so many steps; None does all.

    Returns:
        The steps that were done.

    Raises:
        BaseMismatchError: the trajectory was made on another base, or on other views.
        CheckpointError, ValueRangeError: the file is damaged. Nothing has changed.
        ValueError: the number of steps is negative.
    """
    if steps is not None and steps < 0:
        raise ValueError(f"steps is {steps}, expected 0 or more.")
    what = "trajectory" if isinstance(trajectory, Trajectory) else str(trajectory)
    run = trajectory if isinstance(trajectory, Trajectory) else Trajectory.load(trajectory)
    run.check(views, what)
    done = run.steps[:steps]
    mover = run.mover(views)
    mover.reset()
    views.space = run.space
    mover.advance(done)
    views.write()
    return done
