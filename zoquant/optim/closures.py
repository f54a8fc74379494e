"""Objectives: any callable that returns one finite number."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from zoquant.errors import FLOAT16_OVERFLOWS, LossError

Closure = Callable[[], Tensor | float]
RowLosses = Callable[[int], Tensor]
"""Given how often to repeat the batch, returns the loss of each example: `[repeat * examples]`."""
AnyClosure = Callable[..., Tensor | float]
"""One of them: which of the two follows from how the probes are evaluated."""


def mean_loss(closure: AnyClosure | Sequence[AnyClosure], weights: Sequence[float] | None = None) -> Closure:
    """Return one closure for several, Σ w_i · L_i / Σ w_i in float64; one alone is returned as it is.

    Raises:
        ValueError: there is no closure, or the weights are not as many finite numbers above 0.
    """
    if callable(closure):
        if weights is not None:
            raise ValueError(f"weights is {weights!r}, expected None, since there is one closure.")
        return closure
    shares = shares_of(closure, weights)
    return lambda: sum(w * _double(part()) for w, part in zip(shares, closure, strict=True)) / sum(shares)


def shares_of(closures: Sequence[object], weights: Sequence[float] | None) -> list[float]:
    """Return the weight of each closure.

    Raises:
        ValueError: there is no closure, or the weights are not as many finite numbers above 0.
    """
    shares = [1.0] * len(closures) if weights is None else [float(weight) for weight in weights]
    if not shares or len(shares) != len(closures) or not all(math.isfinite(w) and w > 0 for w in shares):
        count = max(len(closures), 1)
        raise ValueError(f"weights is {shares!r}, expected {count} numbers above 0, one for each closure.")
    return shares


def loss_of(returned: object, step: int) -> float:
    """Return what a closure returned in step number `step`, a float or a tensor of one element, as a float.

    Raises:
        LossError: it is no number, NaN or infinite.
    """
    try:
        loss = float(returned)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise LossError(
            f"step {step}: the closure returned {_kind(returned)}, expected one number. The step was undone; "
            "return the loss as a float or as a tensor of one element."
        ) from error
    if not math.isfinite(loss):
        raise LossError(
            f"step {step}: the loss is {loss}, expected a finite number. The step was undone; lower eps or lr, or look "
            f"at the batch. {FLOAT16_OVERFLOWS}"
        )
    return loss


def rows_of(returned: object, blocks: int, step: int, expected: str) -> Tensor:
    """Return a loss for each example, float `[examples]`, as float64 `[blocks, examples of a block]`.

    Raises:
        LossError: they are not that many losses; the message names the step and says what is expected.
    """
    rows = returned if isinstance(returned, Tensor) and returned.dim() == 1 else None
    if rows is None or not len(rows) or len(rows) % blocks:
        got = f"shape {list(returned.shape)}" if isinstance(returned, Tensor) else f"a {type(returned).__name__}"
        raise LossError(
            f"step {step}: the closure returned {got}, expected a tensor of one loss for each example{expected}. The "
            "step was undone; return e.g. cross_entropy(..., reduction='none')."
        )
    return rows.double().view(blocks, -1)


def _double(loss: Tensor | float) -> Any:
    """Return a loss in float64; what is no number stays, for the step to refuse."""
    return loss.double() if isinstance(loss, Tensor) else loss


def _kind(returned: object) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    return f"a {type(returned).__name__}"
