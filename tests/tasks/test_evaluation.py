"""Metrics with their intervals, and evaluations as plain data."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoquant.errors import LossError
from zoquant.tasks import Evaluation, Metric


def test_the_interval_of_a_share_is_wilsons() -> None:
    found = Metric.share([True, False] * 50)
    assert found.value == 0.5
    assert found.interval == pytest.approx((0.4038, 0.5962), abs=1e-4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_shares_lie_in_their_interval(scores: list[float]) -> None:
    found = Metric.share(scores)
    assert found.interval is not None
    assert -1e-9 <= found.interval[0] <= found.value + 1e-9
    assert found.value - 1e-9 <= found.interval[1] <= 1 + 1e-9
    assert found.interval[0] < found.interval[1]


def test_a_mean_without_a_bound_has_no_interval() -> None:
    found = Metric.mean([1.0, math.inf, 2.0])
    assert (found.value, found.interval) == (math.inf, None)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(500):
        weights = [draw.randint(1, 9) for _ in range(60)]
        sums = [sum(draw.expovariate(0.5) for _ in range(weight)) for weight in weights]
        found = Metric.mean(sums, weights)
        assert found.interval is not None
        covered += found.interval[0] <= 2 <= found.interval[1]
    assert 0.91 < covered / 500 < 0.98


def test_one_example_has_no_interval() -> None:
    assert Metric.mean([2.0]) == Metric(2.0, None)


@pytest.mark.parametrize("make", [Metric.mean, Metric.share])
def test_nan_is_refused(make: object) -> None:
    with pytest.raises(
        LossError,
        match=r"a metric of 2 examples is NaN.*If the model computes in float16.*compute_dtype and activation_dtype",
    ):
        make([0.5, math.nan])  # type: ignore[operator]


def test_evaluations_go_through_json() -> None:
    metrics = {"f1": Metric(0.5, (0.4, 0.6)), "loss": Metric(2.0, None)}
    found = Evaluation("f1", metrics, 10, answers=((3, 2), (1, 4)))
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.score.value == found["f1"] == 0.5
    assert found.loss == 2
