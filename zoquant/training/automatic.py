"""What a run moves when nobody says: rows and columns, with a direction for each example, where that is possible.

On SmolLM2-135M and SST-2 that gets in a quarter of the forwards where calibrated two-point probes of all values get,
and it spends none on calibration; see docs/benchmarks.md. A number or a choice that is given is meant for a run of
values, so it makes the run one.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor, nn

from zoquant.errors import DataError, NoViewsError, ShapeError, UnsupportedLayoutError
from zoquant.optim.batched import BatchedZO
from zoquant.optim.default_layers import upper_middle
from zoquant.tasks import PerExample, Task
from zoquant.training.settings import AUTO, Settings
from zoquant.views.attach import attach, claimed
from zoquant.views.checkpoint_names import kept_names
from zoquant.views.model_views import AttachedLayer, Views

_DECIDING = (
    "lr", "eps", "clip", "estimator", "probes", "noise", "density", "rule", "decay", "space", "coupled", "roles",
)  # fmt: skip
_TRIED = 2


@dataclass(frozen=True)
class Resolved:
    """What a run moves.

    Attributes:
        settings: of the run; `subspace` is none of `"auto"`, and `include` names what moves.
        views: the views that move.
        why: what `"auto"` came to and why; None if the subspace was given.
    """

    settings: Settings
    views: Views
    why: str | None


def resolve(settings: Settings, model: nn.Module, task: Task[Any]) -> Resolved:
    """Choose the subspace if it is `"auto"`, and of rows and columns the layers if no pattern says which; attach.

    Whether a model's layers can be probed from outside is tried in a forward of two examples, so that a run does not
    find out in its first step.

    Raises:
        DataError: rows and columns are asked for, but the task does not tell the loss of each example.
        ValueError: rows and columns are asked for, but several processes share a step.
        NoViewsError, UnsupportedLayoutError, ValueRangeError: see `attach`.
    """
    against = _against(settings, task) if settings.subspace == AUTO else None
    if settings.subspace == "values" or against is not None:
        return _values(settings, _attach(model, settings), against)
    if dist.is_available() and dist.is_initialized():
        raise ValueError("subspace is 'rows-columns', but several processes share a step. Take subspace values.")
    if not isinstance(task, PerExample):
        raise DataError(
            f"subspace is 'rows-columns', but {type(task).__name__} does not tell the loss of each example. "
            "Take subspace values, or a task of classification with objective loss."
        )
    include = _include(settings, model)
    chosen = replace(settings, subspace="rows-columns", estimator="group-relative", include=include)
    if settings.subspace == "rows-columns":
        return Resolved(chosen, _attach(model, chosen), None)
    try:
        views = _attach(model, chosen)
        _try(chosen, views, model, task)
    except NoViewsError:
        return _values(settings, _attach(model, settings), "exclude leaves nothing of the layers that would move")
    except (UnsupportedLayoutError, ShapeError) as error:
        return _values(settings, _attach(model, settings), str(error))
    return Resolved(chosen, views, f"subspace rows-columns, with a direction for each example: {_moved(views)}.")


def _against(settings: Settings, task: Task[Any]) -> str | None:
    """Return what speaks for values before the model is looked at."""
    usual = Settings()
    for name in _DECIDING:
        if (given := getattr(settings, name)) != getattr(usual, name):
            return f"{name} is {given!r}"
    if dist.is_available() and dist.is_initialized():
        return "several processes share the losses of a step"
    if settings.batch_size < _TRIED:
        return f"batch_size is {settings.batch_size}, and a direction for each example needs {_TRIED}"
    if not isinstance(task, PerExample):
        return f"{type(task).__name__} does not tell the loss of each example"
    return None


def _values(settings: Settings, views: Views, why: str | None) -> Resolved:
    said = None if why is None else f"subspace values: {why.rstrip('.')}."
    return Resolved(replace(settings, subspace="values"), views, said)


def _attach(model: nn.Module, settings: Settings) -> Views:
    return attach(
        model, roles=settings.roles, include=settings.include, exclude=settings.exclude, coupled=settings.coupled
    )


def _include(settings: Settings, model: nn.Module) -> tuple[str, ...] | None:
    """Return patterns for what moves: those that are given, the middle of the depth, or all layers that have a grid.

    The layers are looked at without their views, which would take memory for all values.
    """
    if settings.include is not None:
        return settings.include
    names = kept_names(model)
    layers = [AttachedLayer(names.get(path, path), module, backend) for path, module, backend in claimed(model)]
    if found := upper_middle(layer.path for layer in layers):
        return found
    gridded = [layer for layer in layers if layer.grids()]
    return None if len(gridded) in (0, len(layers)) else tuple(f"{layer.path}.*" for layer in gridded)


def _try(settings: Settings, views: Views, model: nn.Module, task: PerExample[Any]) -> None:
    """Probe the model once with the first examples of the run. It stays as it was.

    Raises:
        UnsupportedLayoutError, ShapeError: a layer cannot be probed from outside.
    """
    batch = task.batch_of_step(settings.seed, 0, _TRIED)
    optimizer = cast(BatchedZO, settings.optimizer(views))

    def losses(repeat: int) -> Tensor:
        return task.losses(model, batch.repeat(repeat))

    optimizer.loss_at(optimizer.plan()[0], losses)  # type: ignore[arg-type]


def _moved(views: Views) -> str:
    layers = list(dict.fromkeys(view.layer.path for view in views if view.layer is not None))
    return f"{len(layers)} layers move, {layers[0]} to {layers[-1]}"
