"""Whether the derivative of a probe stays true on the fast paths: products and activations in fewer bits."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.bench.dense import native_copy
from zoquant.cli import demo
from zoquant.kernels.noise.definition import step_seed
from zoquant.optim.estimators import TwoPoint
from zoquant.optim.optimizer import ZOSGD
from zoquant.tasks import Classification, Task
from zoquant.tasks.rows import read_rows
from zoquant.views.attach import attach
from zoquant.views.model_views import Views


def sentences(tokenizer: Any, device: torch.device) -> Classification:
    """Return the demo's training sentences as a task: a loss of real text, as training sees it."""
    return Classification(read_rows(demo.reviews("train")), demo.TEMPLATE, tokenizer, device)


def derivatives(model: nn.Module, task: Task[Any], batch: int, probes: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return how well two-point derivatives on a fast path agree with those in float32.

    All see the same values, the same directions and the same batches; every probe has a batch of its own. All scales
    move.

    Args:
        model: a model on native layers; it is left as it was.
        task: what makes the batches and their loss.
        batch: examples of a batch.
        probes: directions, two or more.
        dtype: dtype that is compared with float32: of the products, and of the activations as well.

    Returns:
        For `products` and `activations` each `correlation`, and `relative_error`: rms of the difference over rms of the
        float32 derivative.
    """
    models = {
        "products": native_copy(model, dtype),
        "activations": native_copy(model, dtype, activations=dtype),
        "float32": native_copy(model, torch.float32),
    }
    views = attach(model)
    eps = float(ZOSGD(views).param_groups[0]["eps"])
    found: dict[str, list[float]] = {name: [] for name in models}
    try:
        for number in range(probes):
            made, seed = task.batch_of_step(0, number, batch), step_seed(0, number)
            for name, derivative in _derivatives(models, views, partial(task.loss, batch=made), seed, eps).items():
                found[name].append(derivative)
    finally:
        views.write()
    true = found.pop("float32")
    return {
        "probes": probes,
        "batch": batch,
        "eps": eps,
        "compute_dtype": str(dtype).removeprefix("torch."),
        "derivative_rms": _rms(true),
        **{name: _agreement(fast, true) for name, fast in found.items()},
    }


def _agreement(fast: Sequence[float], true: Sequence[float]) -> dict[str, float]:
    error = _rms([a - b for a, b in zip(fast, true, strict=True)])
    return {"correlation": _correlation(fast, true), "relative_error": error / _rms(true)}


def _derivatives(
    models: Mapping[str, nn.Module], views: Views, loss: Callable[[nn.Module], Any], seed: int, eps: float
) -> dict[str, float]:
    """Return the derivative of a loss along one direction, as each model finds it."""
    losses: dict[str, list[float]] = {name: [] for name in models}
    for sign in (1, -1):
        views.write(seed=seed, eps=sign * eps)
        with torch.no_grad():
            for name, each in models.items():
                losses[name].append(float(loss(each)))
    return {name: TwoPoint().derivatives(both, eps)[0] for name, both in losses.items()}


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Pearson's correlation; 1 of equal derivatives, whatever they are."""
    return 1.0 if list(a) == list(b) else statistics.correlation(a, b)


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(value * value for value in values))
