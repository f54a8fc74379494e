"""The delta file: what training added to each view, and the base that it belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from zoquant.errors import BaseMismatchError, CheckpointError, ShapeError, ValueRangeError
from zoquant.files.atomic_files import load_tensors, save_tensors
from zoquant.views.fingerprint import check_base
from zoquant.views.flat_buffer import SPACES, Space
from zoquant.views.model_views import Views

_VERSION = 1


@dataclass(frozen=True)
class Delta:
    """A delta file in memory.

    Attributes:
        values: float32 by key, in the shape and order of the tensor on disk.
        base: fingerprint of the base by key.
        space: `"relative"`: theta = base · (1 + delta); `"absolute"`: theta = base + delta.
    """

    values: Mapping[str, Tensor]
    base: Mapping[str, str]
    space: Space

    @classmethod
    def of(cls, views: Views) -> "Delta":
        """Return the delta that views hold now, as copies on the CPU."""
        return cls({key: views.delta(key).cpu() for key in views.keys}, views.fingerprints(), views.space)

    @classmethod
    def mean(cls, deltas: Sequence["Delta"]) -> "Delta":
        """Return the average of several runs on one base: the sum in float64, divided, rounded once.

        Raises:
            BaseMismatchError: the deltas are of different bases, keys or spaces.
            ValueError: there is none.
        """
        if not deltas:
            raise ValueError("Delta.mean: got no delta, expected at least one.")
        for other in deltas[1:]:
            deltas[0]._check_alike(other)
        values = {
            key: (sum(delta.values[key].double() for delta in deltas) / len(deltas)).float()  # type: ignore[union-attr]
            for key in deltas[0].values
        }
        return cls(values, dict(deltas[0].base), deltas[0].space)

    def __sub__(self, other: "Delta") -> "Delta":
        """Return what was added between two moments: a delta on the same base, rounded once to float32.

        Raises:
            BaseMismatchError: the deltas are of different bases, keys or spaces.
        """
        self._check_alike(other)
        values = {key: value - other.values[key] for key, value in self.values.items()}
        return Delta(values, dict(self.base), self.space)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file.

        Raises:
            WriteError: the file could not be written.
        """
        metadata = {"kind": "delta", "version": _VERSION, "space": self.space, "base": dict(self.base)}
        save_tensors(Path(path), self.values, metadata)

    def check(self, what: str) -> None:
        """Refuse values that no run leaves.

        Raises:
            CheckpointError: one is not float32, or base and space are no such things; the message begins with `what`.
            ValueRangeError: one is NaN or infinite; its key is named.
        """
        fit = isinstance(self.base, Mapping) and self.base.keys() == self.values.keys()
        if not fit or self.space not in SPACES:
            raise CheckpointError(
                f"{what}: the header does not name space and base of every tensor. Is the file whole?"
            )
        for key, value in self.values.items():
            if value.dtype != torch.float32:
                raise CheckpointError(f"{what}: {key} is {value.dtype}, expected torch.float32. Save the delta again.")
            if not torch.isfinite(value).all():
                raise ValueRangeError(
                    f"{what}: {key} holds NaN or infinity, expected finite numbers. Nothing was changed."
                )

    def put(self, views: Views, what: str = "delta") -> None:
        """Let a model compute with this delta: views that it does not name go back to their base.

        Raises:
            BaseMismatchError: it was made on another base, or moves views apart that share their delta here.
            CheckpointError, ShapeError, ValueRangeError: it is damaged. Nothing has changed.
        """
        self.check(what)
        check_base(what, self.base, views.fingerprints())
        shapes = {view.name: tuple(view.shape) for view in views}
        for key, value in self.values.items():
            if tuple(value.shape) != shapes.get(key):
                raise ShapeError(
                    f"{what}: {key} has shape {tuple(value.shape)}, expected {shapes.get(key)}. Nothing changed."
                )
        self._check_coupled(what, views)
        for buffer in views.buffers:
            buffer.delta.zero_()
        views.space = self.space
        views.set_delta(self.values)

    def _check_coupled(self, what: str, views: Views) -> None:
        """Refuse a delta that moves views apart which share theirs here."""
        for keys in views.coupled_keys():
            found = [self.values.get(key) for key in keys]
            if any(value is None for value in found) and any(value is not None for value in found):
                raise BaseMismatchError(f"{what}: moves only some of {', '.join(keys)}. Attach with coupled=False.")
            if any(value is not None and not torch.equal(value, cast(Tensor, found[0])) for value in found):
                raise BaseMismatchError(f"{what}: moves {', '.join(keys)} apart. Attach with coupled=False.")

    def _check_alike(self, other: "Delta") -> None:
        if self.space != other.space:
            raise BaseMismatchError(f"delta: one is in {self.space} space, the other in {other.space}. Use one space.")
        check_base("delta", self.base, other.base)
        check_base("delta", other.base, self.base)


def save_delta(path: str | Path, views: Views) -> None:
    """Write the delta of all views to a safetensors file, which is replaced if it exists.

    Raises:
        WriteError: the file could not be written.
    """
    Delta.of(views).save(path)


def read_delta(path: str | Path) -> Delta:
    """Read a delta file and check it on its own.

    Raises:
        CheckpointError: not a delta, of a newer version, or truncated.
        ValueRangeError: a value is NaN or infinite; the first key is named.
    """
    values, metadata = load_tensors(Path(path), "delta")
    version = metadata.get("version")
    if version != _VERSION:
        raise CheckpointError(f"{path}: delta of version {version}, expected {_VERSION}. Update zoquant.")
    delta = Delta(values, cast(Mapping[str, str], metadata.get("base")), cast(Space, metadata.get("space")))
    delta.check(str(path))
    return delta


def load_delta(path: str | Path, views: Views) -> None:
    """Put what `save_delta` wrote on its base, whatever the model held before: see `Delta.put`."""
    read_delta(path).put(views, str(path))
