"""What a step launches and allocates. Nothing is timed here."""

from typing import Any

import pytest
import torch

import zoquant
from tests.operators import Operators
from tests.toy import ToyModel, toy_model
from zoquant import kernels
from zoquant.optim.estimators import OneSided


@pytest.fixture
def compiled() -> None:
    """Skip where nothing could be compiled: torch allocates while it draws."""
    if kernels.library() is None:
        pytest.skip(kernels.status())


def counted(model: ToyModel, **settings: Any) -> Operators:
    """Return what the third step of a run asks of torch, with a loss that asks nothing."""
    optimizer = zoquant.ZOSGD(zoquant.attach(model), **settings)
    for _ in range(2):
        optimizer.step(lambda: 1.0)
    operators = Operators()
    with operators:
        optimizer.step(lambda: 1.0)
    return operators


def test_a_step_launches_as_much_for_many_layers_as_for_few() -> None:
    few, many = counted(toy_model(layers=2)), counted(toy_model(layers=40))
    assert few.count == many.count > 0


@pytest.mark.parametrize("settings", [{}, {"noise": "gaussian"}, {"estimator": OneSided()}], ids=str)
def test_a_step_allocates_nothing_after_the_first(settings: dict[str, Any], compiled: None) -> None:
    assert counted(toy_model(layers=20), **settings).allocated == 0


def test_the_count_sees_an_allocation() -> None:
    with Operators() as operators:
        torch.ones(5).add_(1).mul(2)
    assert operators.count == 3
    assert operators.allocated == 40
