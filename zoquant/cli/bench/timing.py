"""Taking times: contestants in turn, medians with quartiles."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

_WARM_UP = 2

Spread = dict[str, float]
"""`median`, `q1` and `q3`."""


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes, the work that it left on a GPU included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(
    contestants: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = _WARM_UP
) -> dict[str, list[float]]:
    """Return the seconds of each contestant, measured one after the other in every round.

    Args:
        contestants: calls by name.
        rounds: rounds that count.
        warm_up: rounds before them that do not.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + warm_up):
        for name, call in contestants.items():
            times[name].append(seconds(call))
    return {name: found[warm_up:] for name, found in times.items()}


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high}


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Return the spread of the ratios, round by round: what slows a whole round down does not show."""
    return spread([a / b for a, b in zip(above, below, strict=True)])
