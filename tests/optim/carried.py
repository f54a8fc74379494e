"""A run that is saved in the middle and goes on elsewhere is the run that was never interrupted."""

import io
from collections.abc import Callable

import torch

from tests.toy import ToyModel, toy_model
from zoquant import ZOSGD
from zoquant.testing.tensors import same_bits


def carried_by_state(old: ZOSGD, new: ZOSGD) -> None:
    """Let an optimizer go on from the state of another, as a file brings it."""
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    new.load_state_dict(torch.load(file, weights_only=True))


def check_it_goes_on(
    made: Callable[[ToyModel], ZOSGD],
    steps_of: Callable[[ZOSGD, ToyModel, int], None],
    carry: Callable[[ZOSGD, ZOSGD], None] = carried_by_state,
) -> None:
    """Compare six steps with three, carried to another optimizer that does three more."""
    models = [toy_model() for _ in range(3)]
    expected, first, second = map(made, models)
    steps_of(expected, models[0], 6)
    steps_of(first, models[1], 3)
    carry(first, second)
    steps_of(second, models[2], 3)
    assert second.trajectory == expected.trajectory
    for mine, other in zip(second.all_views, expected.all_views, strict=True):
        assert all(same_bits(one.read(), two.read()) for one, two in zip(mine, other, strict=True))
