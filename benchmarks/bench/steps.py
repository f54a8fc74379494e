"""What a step costs over its forwards."""

from typing import Any

from torch import Tensor, nn

from zoquant.cli.bench.measure import sample_loss
from zoquant.cli.bench.timing import in_turn, ratio, spread
from zoquant.optim.estimators import ESTIMATORS, Estimator
from zoquant.optim.optimizer import ZOSGD
from zoquant.views.attach import attach


def overheads(model: nn.Module, ids: Tensor, rounds: int) -> dict[str, Any]:
    """Return for each estimator a step over as many forwards as it evaluates, and tokens a second.

    Args:
        model: the model.
        ids: the batch, int64 `[batch, length]`.
        rounds: repetitions.
    """
    return {name: _overhead(model, ids, made(), rounds) for name, made in ESTIMATORS.items()}


def _overhead(model: nn.Module, ids: Tensor, estimator: Estimator, rounds: int) -> dict[str, Any]:
    probes = estimator.least_probes
    count = len(estimator.points(probes))
    optimizer = ZOSGD(attach(model), lr=0.0, estimator=estimator, probes=probes)

    def forwards() -> None:
        for _ in range(count):
            sample_loss(model, ids)

    times = in_turn({"forwards": forwards, "step": lambda: optimizer.step(lambda: sample_loss(model, ids))}, rounds)
    return {
        "forwards": count,
        "forwards_seconds": spread(times["forwards"]),
        "step_seconds": spread(times["step"]),
        "overhead": ratio(times["step"], times["forwards"]),
        "tokens_a_second": spread([count * ids.numel() / s for s in times["step"]]),
    }
