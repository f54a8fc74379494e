"""A recorded forward gives what the forward gives, and sees what is written into the values."""

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_suite.graphs import Graphed, held
from tests.toy import toy_batch, toy_model
from zoquant import attach
from zoquant.errors import UnsupportedLayoutError
from zoquant.kernels.workspace import scratch


def test_nothing_is_recorded_without_a_gpu() -> None:
    graphed = Graphed(toy_model())
    with pytest.raises(UnsupportedLayoutError, match="expected inputs on one CUDA device, got cpu"):
        graphed(torch.zeros(2, 8))
    with pytest.raises(UnsupportedLayoutError, match="got none"):
        graphed()
    assert graphed.shapes == 0


def test_scratch_memory_that_is_held_is_not_given_away() -> None:
    device = torch.device("cpu")
    first = scratch((8,), torch.int16, device, "graphs")
    kept = held()
    scratch((1 << 12,), torch.int16, device, "graphs")
    assert any(each.data_ptr() == first.data_ptr() for each in kept)
    assert all(each.data_ptr() != first.data_ptr() for each in held())


@pytest.mark.gpu
def test_a_replay_sees_writes_and_new_inputs() -> None:
    device = torch.device("cuda")
    model, (x, y) = toy_model().to(device), (each.to(device) for each in toy_batch())

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        error: Tensor = (model(inputs) - targets).square().mean()
        return error

    graphed, views = Graphed(loss), attach(model)
    for number in range(4):
        views.write(seed=number, eps=0.05)
        scratch((1 << (20 + number),), torch.float32, device, "decode")  # outgrows what was recorded
        torch.testing.assert_close(graphed(x, y), loss(x, y))
        torch.testing.assert_close(graphed(x + 1, y), loss(x + 1, y))
    torch.testing.assert_close(graphed(x[:2], y[:2]), loss(x[:2], y[:2]))
    assert graphed.shapes == 2


@pytest.mark.gpu
def test_what_waits_for_the_gpu_is_refused() -> None:
    model, x = toy_model().cuda(), toy_batch()[0].cuda()
    with pytest.raises(UnsupportedLayoutError, match="cannot be recorded"):
        Graphed(lambda inputs: model(inputs) * model(inputs).mean().item())(x)
