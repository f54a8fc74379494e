"""One step of several optimizers: the same forwards, every one its own space, and nothing left behind by an error."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoquant
from tests.toy import ToyModel, toy_batch, toy_loss, toy_model
from zoquant import ZOSGD, BatchedZO, attach, joint_step
from zoquant.errors import LossError
from zoquant.optim.estimators import OneSided
from zoquant.testing.tensors import same_bits


def pair(model: ToyModel, *, lr: float = 1e-2, seed: int = 0) -> list[ZOSGD]:
    """Return an optimizer of the scales in relative space, and one of the zeros in absolute space."""
    scales = ZOSGD(attach(model), lr=lr, eps=1e-2, seed=seed, clip=5.0)
    zeros = ZOSGD(attach(model, roles=("zero",)), lr=lr, eps=1e-3, seed=seed, space="absolute", clip=5.0)
    return [scales, zeros]


def values(optimizers: Sequence[ZOSGD]) -> list[Tensor]:
    return [view.read() for optimizer in optimizers for view in optimizer.views]


def unchanged(optimizers: Sequence[ZOSGD], before: Sequence[Tensor]) -> bool:
    return all(same_bits(one, two) for one, two in zip(values(optimizers), before, strict=True))


@settings(max_examples=5)
@given(seed=st.integers(0, 10_000))
def test_one_optimizer_is_its_own_step(seed: int) -> None:
    (one, two), batch = (toy_model(), toy_model()), toy_batch()
    alone = ZOSGD(attach(one), seed=seed, lr=1e-2)
    joint = ZOSGD(attach(two), seed=seed, lr=1e-2)
    assert joint_step([joint], lambda: toy_loss(two, batch)) == [alone.step(lambda: toy_loss(one, batch))]
    assert unchanged([alone], values([joint]))


def test_a_step_costs_the_forwards_of_one(model: ToyModel) -> None:
    calls: list[Tensor] = []
    batch = toy_batch()

    def closure() -> Tensor:
        calls.append(toy_loss(model, batch))
        return calls[-1]

    results = joint_step(pair(model), closure)
    assert len(calls) == 2
    difference = float(calls[0]) - float(calls[1])
    assert [result.derivative for result in results] == pytest.approx([difference / 2e-2, difference / 2e-3])


@pytest.mark.filterwarnings("error")
def test_schedulers_of_torch_see_a_joint_step(model: ToyModel) -> None:
    optimizers, batch = pair(model), toy_batch()
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in optimizers]
    for _ in range(2):
        joint_step(optimizers, lambda: toy_loss(model, batch))
        for scheduler in schedulers:
            scheduler.step()
    assert [each.param_groups[0]["lr"] for each in optimizers] == [2.5e-3, 2.5e-3]


def test_a_derivative_is_its_own_and_noise_of_the_others() -> None:
    """Of a linear loss g · theta, d_i = g_i · z_i + Σ_j (ε_j / ε_i) g_j · z_j, to rounding."""
    model = toy_model(dtype=torch.float32)
    optimizers = pair(model, lr=0.0)
    [slopes, others] = [slopes_of(optimizer) for optimizer in optimizers]
    along = [float(slopes), float(others)]

    def loss() -> float:
        return sum(float(view.read().double().sum()) for optimizer in optimizers for view in optimizer.views)

    results = joint_step(optimizers, loss)
    expected = [along[0] + along[1] * 1e-3 / 1e-2, along[1] + along[0] * 1e-2 / 1e-3]
    assert [result.derivative for result in results] == pytest.approx(expected, rel=1e-2, abs=1e-2)


def slopes_of(optimizer: ZOSGD) -> Tensor:
    """Return the derivative of the sum of all values along the first direction."""
    views, total = optimizer.views, torch.zeros(())
    seed = optimizer.plan()[0].seed
    assert seed is not None
    views.add(seed, 1.0, "rademacher")
    for key in views.keys:
        total += (views.delta(key) * (views.base(key) if views.space == "relative" else 1.0)).sum()
    for buffer in views.buffers:
        buffer.delta.zero_()
    return total


def test_loss_falls_and_both_trajectories_replay(model: ToyModel) -> None:
    optimizers, batch = pair(model, lr=5e-3), toy_batch()
    losses = [joint_step(optimizers, lambda: toy_loss(model, batch))[0].loss for _ in range(30)]
    assert losses[-1] < losses[0]
    assert [optimizer.steps for optimizer in optimizers] == [30, 30]
    fresh = toy_model()
    again = [attach(fresh), attach(fresh, roles=("zero",))]
    for views, optimizer in zip(again, optimizers, strict=True):
        zoquant.replay(optimizer.trajectory, views)
    assert all(
        same_bits(one.read(), two)
        for one, two in zip((view for views in again for view in views), values(optimizers), strict=True)
    )


def test_a_loss_that_is_not_finite_is_undone_and_counts_for_all(model: ToyModel) -> None:
    optimizers = pair(model)
    before = values(optimizers)
    with pytest.raises(LossError, match="step 0: the loss is nan"):
        joint_step(optimizers, lambda: float("nan"))
    assert unchanged(optimizers, before)
    assert [optimizer.steps for optimizer in optimizers] == [1, 1]


def test_what_overflows_for_one_keeps_the_steps_together(model: ToyModel) -> None:
    optimizers = pair(model)
    optimizers[1].param_groups[0]["eps"] = 1e-300
    losses = iter([1e10, -1e10])
    with pytest.raises(LossError, match="no finite difference quotient"):
        joint_step(optimizers, lambda: next(losses))
    assert [optimizer.steps for optimizer in optimizers] == [1, 1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_closure_that_raises_leaves_no_trace(model: ToyModel, error: type[BaseException]) -> None:
    optimizers = pair(model)
    before = values(optimizers)

    def closure() -> float:
        raise error("stop")

    with pytest.raises(error):
        joint_step(optimizers, closure)
    assert unchanged(optimizers, before)
    assert [optimizer.steps for optimizer in optimizers] == [0, 0]


def test_optimizers_that_do_not_fit_are_refused(model: ToyModel) -> None:
    scales, zeros = pair(model)
    one_sided = ZOSGD(attach(model, roles=("zero",)), estimator=OneSided())
    two_probes = ZOSGD(attach(model, roles=("zero",)), probes=2)
    for others, message in (
        ([], "got none, expected one ZOSGD"),
        ([BatchedZO(attach(model, roles=("scale", "zero")), directions=2)], "got BatchedZO, expected one ZOSGD"),
        ([scales, one_sided], "evaluate differently"),
        ([scales, two_probes], "with 1 probes and .* with 2 probes"),
        ([scales, zeros, ZOSGD(attach(model, roles=("zero",)))], "is moved by two optimizers"),
    ):
        with pytest.raises(ValueError, match=message):
            joint_step(others, lambda: 0.0)
    assert scales.steps == zeros.steps == 0
