"""The views that a trajectory moves, from the checkpoint that its run started from."""

import glob
from pathlib import Path

import torch

from zoquant.checkpoint.file_views import checkpoint_views
from zoquant.checkpoint.load import load
from zoquant.errors import CheckpointError
from zoquant.protocol import ROLES
from zoquant.record.trajectory import Trajectory
from zoquant.views.attach import attach
from zoquant.views.model_views import Views


def recorded_views(path: str | Path, trajectory: Trajectory) -> Views:
    """Return the views to replay a trajectory on.

    Those of single values are read from the file alone. Where rows and columns moved, the layers have to say how their
    values lie: the model is loaded, and no forward is run.

    Args:
        path: the checkpoint.
        trajectory: of a run on it.

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
