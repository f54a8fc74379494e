"""What a run moves when nobody says: rows and columns, with a direction for each example, where that is possible.

On SmolLM2-135M and SST-2 that gets in a quarter of the forwards where calibrated two-point probes of all values get,
and it spends none on calibration; see docs/project/study.md. A number or a choice that is given is meant for a run of
values, so it makes the run one.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor, nn

from zoquant.errors import DataError, NoViewsError, ShapeError, UnsupportedLayoutError, shown
from zoquant.optim.default_layers import upper_middle
from zoquant.optim.optimizer import ZOSGD
from zoquant.protocol import PLAIN_ROLES
from zoquant.record.group import Subspace
from zoquant.tasks import PerExample, Task
from zoquant.training.settings import AUTO, Settings
from zoquant.views.attach import claimed
from zoquant.views.checkpoint_names import kept_names
from zoquant.views.model_views import AttachedLayer, Views

_DECIDING = (
    "lr", "eps", "clip", "estimator", "probes", "noise", "density", "rule", "decay", "space", "coupled", "roles",
)  # fmt: skip
CHOSEN = ("subspace", "include", "estimator")
"""The settings that `"auto"` chooses."""
_TRIED = 2
_NUMBER = re.compile(r"\.(\d+)\.")
_EXCLUDED = "exclude leaves nothing of the layers that would move"


@dataclass(frozen=True)
class Moving:
    """What a run moves.

    Attributes:
        settings: of the run; `subspace` is none of `"auto"`, and `include` names what moves.
        optimizer: what moves it, before its first step.
        why: what `"auto"` came to and why; None if the subspace was given.
    """

    settings: Settings
    optimizer: ZOSGD
    why: str | None

    @property
    def views(self) -> Views:
        """The views that move."""
        return self.optimizer.views

    @classmethod
    def choose(cls, settings: Settings, model: nn.Module, task: Task[Any], begun: Subspace | None = None) -> "Moving":
        """Choose the subspace if it is `"auto"`, and of rows and columns the layers if no pattern says which; attach.

        Whether a model's layers can be probed from outside is tried in a forward of two examples, so that a run does
        not find out in its first step. `begun` is what `"auto"` came to when the run began.

        Raises:
            DataError: rows and columns are asked for, but the task does not tell the loss of each example.
            ValueError: rows and columns are asked for, but several processes share a step.
            NoViewsError, UnsupportedLayoutError, ValueRangeError: see `attach`.
        """
        given = settings.subspace != AUTO
        subspace, against = (settings.subspace, None) if given else (begun, _against(settings, task))
        tried = subspace is None and against is None
        if subspace == "rows-columns":
            check_rows_columns(isinstance(task, PerExample), type(task).__name__)
        probed = tried or subspace == "rows-columns"
        chosen = _rows_and_columns(settings, model) if probed else replace(settings, subspace="values")
        try:
            found = _attached(chosen, model)
            if tried:
                _try(found, model, cast(PerExample[Any], task))
        except (NoViewsError, UnsupportedLayoutError, ShapeError) as error:
            if not tried:
                raise
            against = _EXCLUDED if isinstance(error, NoViewsError) else str(error)
            found = _attached(replace(settings, subspace="values"), model)
        return found if given else replace(found, why=_told(found, against))


def _against(settings: Settings, task: Task[Any]) -> str | None:
    """Return what speaks for values before the model is looked at."""
    usual = Settings()
    for name in _DECIDING:
        if (given := getattr(settings, name)) != getattr(usual, name):
            return f"{name} is {shown(given)}"
    if dist.is_available() and dist.is_initialized():
        return "several processes share the losses of a step"
    if settings.batch_size < _TRIED:
        return f"batch_size is {settings.batch_size}, and a direction for each example needs {_TRIED}"
    if not isinstance(task, PerExample):
        return "this task with this objective does not tell the loss of each example"
    return None


def check_rows_columns(per_example: bool, task: str) -> None:
    """Refuse rows and columns where they cannot be."""
    if dist.is_available() and dist.is_initialized():
        raise ValueError("subspace is 'rows-columns', but several processes share a step. Take subspace values.")
    if not per_example:
        raise DataError(
            f"subspace is 'rows-columns', but {task} does not tell the loss of each example. "
            "Take subspace values, or a task of classification with objective loss."
        )


def _rows_and_columns(settings: Settings, model: nn.Module) -> Settings:
    """Return the settings of a run on rows and columns, with the layers that move.

    Those are the ones that are given, the middle of the depth, or all that have a grid. They are looked at without
    their views, which would take memory for all values.
    """
    chosen = replace(settings, subspace="rows-columns", estimator="group-relative")
    if settings.include is not None:
        return chosen
    names = kept_names(model)
    layers = [AttachedLayer(names.get(path, path), module, backend) for path, module, backend in claimed(model)]
    if found := upper_middle(layer.path for layer in layers):
        return replace(chosen, include=found)
    gridded = [layer for layer in layers if layer.grids()]
    some = len(gridded) not in (0, len(layers))
    return replace(chosen, include=tuple(f"{layer.path}.*" for layer in gridded)) if some else chosen


def _attached(settings: Settings, model: nn.Module) -> Moving:
    return Moving(settings, settings.optimizer(settings.attach(model)), None)


def _try(found: Moving, model: nn.Module, task: PerExample[Any]) -> None:
    """Probe the model once with the first examples of the run. It stays as it was."""
    batch = task.batch_of_step(found.settings.seed, 0, _TRIED)

    def losses(repeat: int) -> Tensor:
        return task.losses(model, batch.repeat(repeat))

    found.optimizer.loss_at(found.optimizer.plan()[0], losses)


def _told(found: Moving, against: str | None) -> str:
    """Return what `"auto"` came to and why, for people."""
    if found.settings.subspace == "values":
        why = (against or "the run was begun so").rstrip(".")
        return f"Training {_matrices(found.views)}, each value by itself (subspace values), since {why}."
    moved = f"Training {_matrices(found.views)}, their rows and columns (subspace rows-columns)"
    return f"{moved}: each example has a direction of its own."


def _matrices(views: Views) -> str:
    """Return what views belong to, for people: how many matrices, or with plain values modules, and of which layers."""
    kind = "modules" if any(view.role in PLAIN_ROLES for view in views) else "matrices"
    paths = list(dict.fromkeys(view.layer.path for view in views if view.layer is not None))
    if len(paths) < 2:
        return paths[0] if paths else "the values"
    numbers = [int(found[1]) for path in paths if (found := _NUMBER.search(f"{path}."))]
    if len(numbers) < len(paths):
        return f"the {len(paths)} {kind} from {paths[0]} to {paths[-1]}"
    first, last = min(numbers), max(numbers)
    return f"the {len(paths)} {kind} of " + (f"layer {first}" if first == last else f"layers {first} to {last}")
