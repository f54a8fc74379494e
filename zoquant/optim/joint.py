"""One step of several optimizers from the same forwards: scales in relative space, an adapter in absolute space."""

from collections.abc import Iterator, Sequence

import torch

from zoquant.errors import LossError
from zoquant.optim.closures import Closure, loss_of, mean_loss
from zoquant.optim.optimizer import ZOSGD, Evaluation, StepResult


def joint_step(
    optimizers: Sequence[ZOSGD], closure: Closure | Sequence[Closure], weights: Sequence[float] | None = None
) -> list[StepResult]:
    """Do one step of several optimizers, all of whose directions are probed at once.

    Each has views, space, lr and eps of its own. A step costs the forwards of one optimizer: the difference of the
    losses along (ε₁z₁, ε₂z₂, ...), divided by 2ε_i, is the derivative of optimizer i. The update that it makes has the
    expectation of one that it would make alone; the directions of the others add noise.

    Args:
        optimizers: over views of the same model, no value in two of them; of the same estimator and number of probes.
        closure: as for `ZOSGD.step`.
        weights: as for `ZOSGD.step`.

    Returns:
        What each optimizer saw.

    Raises:
        ValueError: there is no optimizer, or they do not fit together. Nothing has changed.
        LossError: a loss is not finite. The step is undone and counts as a step of length 0, for every optimizer if it
            is a loss, for those concerned if only their derivative overflows.
        Exception: whatever the closure raises; the step is undone and does not count.
    """
    _check(optimizers)
    loss = mean_loss(closure, weights)
    try:
        losses = [_evaluate(optimizers, points, loss) for points in _points(optimizers)]
    except LossError:
        for optimizer in optimizers:
            optimizer._undo()
        raise
    except BaseException:
        for optimizer in optimizers:
            optimizer.views.write()
        raise
    return _apply(optimizers, losses)


def _points(optimizers: Sequence[ZOSGD]) -> Iterator[tuple[Evaluation, ...]]:
    return zip(*[optimizer.plan() for optimizer in optimizers], strict=True)


def _evaluate(optimizers: Sequence[ZOSGD], points: Sequence[Evaluation], loss: Closure) -> float:
    """Return the loss where every optimizer's values stand at their own point."""
    for optimizer, point in zip(optimizers, points, strict=True):
        optimizer.views.write(seed=point.seed, eps=point.eps, noise=optimizer.trajectory.noise)
    with torch.no_grad():
        returned = loss()
    return loss_of(returned, optimizers[0].steps)


def _apply(optimizers: Sequence[ZOSGD], losses: Sequence[float]) -> list[StepResult]:
    """Update every optimizer before the first error is raised, so that their steps stay together."""
    results: list[StepResult] = []
    errors: list[LossError] = []
    for optimizer in optimizers:
        try:
            results.append(optimizer.apply(losses))
        except LossError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return results


def _check(optimizers: Sequence[ZOSGD]) -> None:
    """Refuse optimizers that cannot share their forwards."""
    if not optimizers or any(type(each) is not ZOSGD for each in optimizers):
        got = ", ".join(type(each).__name__ for each in optimizers) or "none"
        raise ValueError(f"joint_step: got {got}, expected one ZOSGD or more. BatchedZO shares no forward.")
    plans = sorted({f"{each.estimator.name} with {each.probes} probes" for each in optimizers})
    if len(plans) > 1:
        raise ValueError(
            f"joint_step: the optimizers evaluate differently, {' and '.join(plans)}. Make them with the same "
            "estimator and probes."
        )
    seen: set[str] = set()
    for optimizer in optimizers:
        twice = seen & set(optimizer.views.keys)
        if twice:
            raise ValueError(
                f"joint_step: {min(twice)} is moved by two optimizers. Attach each role once, or use include."
            )
        seen |= set(optimizer.views.keys)
