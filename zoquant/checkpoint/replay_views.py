"""The views that a trajectory moves, from the checkpoint that its run started from."""

import glob
from collections.abc import Iterable
from pathlib import Path

import torch

from zoquant.checkpoint.loading import load
from zoquant.checkpoint.stored_values import read_base
from zoquant.errors import BaseMismatchError, CheckpointError
from zoquant.files.hub import local_path
from zoquant.protocol import ROLES
from zoquant.record.trajectory import Trajectory
from zoquant.registry import format_of
from zoquant.views.attach import attach
from zoquant.views.model_views import BoundView, Views
from zoquant.views.tensor_views import TensorView


def recorded_views(path: str | Path, trajectory: Trajectory) -> Views:
    """Return the views to replay a trajectory on.

    Those of single values are read from the file alone. Where rows and columns moved, the layers have to say how their
    values lie: the model is loaded, and no forward is run.

    Raises:
        BaseMismatchError, NoViewsError: the checkpoint does not hold the keys of the trajectory.
        CheckpointError: the checkpoint is damaged or of an unknown kind, or the trajectory is of several groups.
    """
    if len(trajectory.groups) != 1:
        raise CheckpointError(
            f"trajectory: of {len(trajectory.groups)} groups, expected one. Replay it in Python: "
            "zoquant.replay(trajectory, [views of each group])."
        )
    coupled = trajectory.groups[0].coupled
    if trajectory.subspace == "values":
        return checkpoint_views(path, trajectory.base, coupled=coupled)
    model, _ = load(path, runtime="native", compute_dtype=torch.float32, device="cpu")
    return attach(model, roles=ROLES, include=[glob.escape(key) for key in trajectory.base], coupled=coupled)


def checkpoint_views(path: str | Path, keys: Iterable[str], *, coupled: bool) -> Views:
    """Return views over copies of a checkpoint's values, to replay a trajectory or load a delta without a model.

    Raises:
        BaseMismatchError: the checkpoint does not hold one of the keys.
        CheckpointError: the checkpoint is damaged or of an unknown kind.
    """
    source = local_path(path)
    found = format_of(source)
    index = found.index(source)
    bound = []
    for key in keys:
        if key not in index:
            raise BaseMismatchError(f"{source}: holds no {key}. Use the checkpoint that training started from.")
        span = index[key]
        bound.append(BoundView(key, TensorView(key, span.role, read_base(source, span).to(span.dtype)), found.name))
    return Views(bound, coupled=coupled)
