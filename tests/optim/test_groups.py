"""Parameter groups: the same forwards, each its own space, one trajectory, and nothing left behind by an error."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.optim.carried import carried_by_state, check_it_goes_on
from tests.toy import ToyModel, toy_batch, toy_loss, toy_model
from zoquant import ZOSGD, Trajectory, Views, attach, replay
from zoquant.errors import BaseMismatchError, CheckpointError, LossError, UnsupportedLayoutError
from zoquant.optim.estimators import RobustClip
from zoquant.record.rules import Adam, Momentum
from zoquant.testing.tensors import same_bits


def groups_of(model: ToyModel) -> list[dict[str, Any]]:
    """Return a group of the scales in relative space, and one of the zeros in absolute space."""
    return [
        {"views": attach(model), "eps": 1e-2, "rule": Momentum(0.5)},
        {"views": attach(model, roles=("zero",)), "lr": 1e-4, "eps": 1e-3, "space": "absolute", "noise": "gaussian"},
    ]


def pair(model: ToyModel, **settings: Any) -> ZOSGD:
    return ZOSGD(groups_of(model), **{"lr": 1e-2, "clip": 5.0, "seed": 3, **settings})


def rows_pair(model: ToyModel, **settings: Any) -> ZOSGD:
    """Return an optimizer of the rows and columns of two layers in one group, and of the third in another."""
    both: Any = ("scale", "zero")
    one, two = attach(model, roles=both, exclude="*.l2.*"), attach(model, roles=both, include="*.l2.*")
    groups: list[dict[str, Any]] = [{"views": one}, {"views": two, "lr": 2e-3, "eps": 1e-2, "rule": Adam()}]
    return ZOSGD(groups, **{"subspace": "rows-columns", "probes": 4, "seed": 3, **settings})


def closure_of(optimizer: ZOSGD, model: ToyModel) -> Callable[..., Any]:
    """Return the closure of the next step."""
    return closure_on(optimizer, model, toy_batch(count=8, seed=optimizer.steps))


def closure_on(optimizer: ZOSGD, model: ToyModel, batch: tuple[Tensor, Tensor]) -> Callable[..., Any]:
    x, y = batch
    if optimizer.together:
        return lambda repeat: (model(x.repeat(repeat, 1)) - y.repeat(repeat, 1)).square().mean(1)
    return lambda: toy_loss(model, (x, y))


def steps_of(optimizer: ZOSGD, model: ToyModel, count: int) -> None:
    for _ in range(count):
        optimizer.step(closure_of(optimizer, model))


def values(optimizer: ZOSGD) -> list[Tensor]:
    return [view.read() for views in optimizer.all_views for view in views]


def unchanged(optimizer: ZOSGD, before: list[Tensor]) -> bool:
    return all(same_bits(one, two) for one, two in zip(values(optimizer), before, strict=True))


either = pytest.mark.parametrize("made", [pair, rows_pair])


def test_one_group_is_the_form_without() -> None:
    one, two = toy_model(), toy_model()
    alone, listed = ZOSGD(attach(one), lr=1e-2, seed=5), ZOSGD([{"views": attach(two), "lr": 1e-2}], seed=5)
    for _ in range(3):
        assert alone.step(closure_of(alone, one)) == listed.step(closure_of(listed, two))
    assert unchanged(alone, values(listed))
    assert alone.trajectory == listed.trajectory


def test_a_step_costs_the_forwards_of_one(model: ToyModel) -> None:
    calls: list[Tensor] = []
    batch = toy_batch()

    def closure() -> Tensor:
        calls.append(toy_loss(model, batch))
        return calls[-1]

    optimizer = pair(model, clip=None)
    result = optimizer.step(closure)
    assert len(calls) == optimizer.forwards == 2
    difference = float(calls[0]) - float(calls[1])
    step = optimizer.trajectory.steps[0]
    assert step.derivatives == pytest.approx([difference / 2e-2, difference / 2e-3])
    assert (result.derivative, result.lr) == (step.derivatives[0], 1e-2)
    assert step.rates == (1e-2, 1e-4)


def test_each_group_is_clipped_by_its_own_bound(model: ToyModel) -> None:
    groups = groups_of(model)
    groups[0]["clip"], groups[1]["clip"] = 1.0, RobustClip(least=1, window=4)
    optimizer, losses = ZOSGD(groups), iter([1.0, 0.9, 2.0, 1.0])
    first, second = (optimizer.step(lambda: next(losses)) for _ in range(2))
    assert (first.clipped, second.clipped) == (True, True)
    found = [step.derivatives for step in optimizer.trajectory.steps]
    assert found[0] == pytest.approx((1.0, 50.0))
    assert found[1] == pytest.approx((1.0, 6 * 50.0))


@pytest.mark.filterwarnings("error")
def test_schedulers_of_torch_set_the_rate_of_each(model: ToyModel) -> None:
    optimizer = pair(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 0.5**step, lambda step: 0.1**step])
    for _ in range(2):
        optimizer.step(closure_of(optimizer, model))
        scheduler.step()
    assert [step.rates for step in optimizer.trajectory.steps] == [(1e-2, 1e-4), (5e-3, pytest.approx(1e-5))]


def test_a_derivative_is_its_own_and_noise_of_the_others() -> None:
    """Of a linear loss g · theta, d_i = g_i · z_i + Σ_j (ε_j / ε_i) g_j · z_j, to rounding."""
    model = toy_model(dtype=torch.float32)
    optimizer = pair(model, lr=0.0, clip=None)
    along = [slope_of(optimizer, number) for number in range(2)]

    def loss() -> float:
        return sum(float(view.read().double().sum()) for views in optimizer.all_views for view in views)

    optimizer.step(loss)
    expected = [along[0] + along[1] * 1e-3 / 1e-2, along[1] + along[0] * 1e-2 / 1e-3]
    assert optimizer.trajectory.steps[0].derivatives == pytest.approx(expected, rel=1e-2, abs=1e-2)


def slope_of(optimizer: ZOSGD, number: int) -> float:
    """Return the derivative of the sum of a group's values along the first direction."""
    views, seed = optimizer.all_views[number], optimizer.plan()[0].seed
    assert seed is not None
    views.add(seed, 1.0, optimizer.trajectory.groups[number].noise)
    parts = [views.delta(key) * (views.base(key) if views.space == "relative" else 1.0) for key in views.keys]
    for buffer in views.buffers:
        buffer.delta.zero_()
    return float(sum(part.sum() for part in parts))


@either
def test_the_loss_falls_and_the_trajectory_replays(made: Callable[..., ZOSGD], tmp_path: Path) -> None:
    model = toy_model()
    optimizer = made(model)
    x, y = toy_batch(count=8)
    first = float(toy_loss(model, (x, y)))
    for _ in range(30):
        optimizer.step(closure_on(optimizer, model, (x, y)))
    assert float(toy_loss(model, (x, y))) < first
    run = optimizer.trajectory
    run.save(tmp_path / "t")
    with run.prefix(4).journal(tmp_path / "j", optimizer.probes) as journal:
        for step in run.steps[4:]:
            journal.append(step)
    for file in ("t", "j"):
        assert Trajectory.load(tmp_path / file) == run
        again = made(toy_model())
        assert list(replay(tmp_path / file, again.all_views)) == run.steps
        assert unchanged(again, values(optimizer))
        assert [views.space for views in again.all_views] == [views.space for views in optimizer.all_views]
    for number, views in enumerate(again.all_views):
        found = run.of(number).delta(views)
        assert found.space == views.space
        assert all(same_bits(found.values[key], views.delta(key)) for key in views.keys)


@either
@pytest.mark.parametrize("carry", [carried_by_state, lambda old, new: new.resume(old.trajectory)])
def test_resumed_is_uninterrupted(made: Callable[..., ZOSGD], carry: Callable[[ZOSGD, ZOSGD], None]) -> None:
    check_it_goes_on(lambda model: made(model, probes=4), steps_of, carry)


def test_a_state_brings_the_rates_of_each_group(model: ToyModel) -> None:
    optimizer = pair(model)
    optimizer.param_groups[1].update(lr=2e-5, eps=3e-3, clip=RobustClip())
    steps_of(optimizer, model, 1)
    other = pair(toy_model())
    carried_by_state(optimizer, other)
    assert [{**group, "params": 0} for group in other.param_groups] == [
        {**group, "params": 0} for group in optimizer.param_groups
    ]


@either
def test_a_loss_that_is_not_finite_is_undone_and_counts(made: Callable[..., ZOSGD], model: ToyModel) -> None:
    optimizer = made(model)
    before = values(optimizer)
    with pytest.raises(LossError, match="step 0: the loss is nan"):
        optimizer.step(lambda *_: torch.full((16,), torch.nan) if optimizer.together else torch.nan)
    assert unchanged(optimizer, before)
    assert not any(optimizer.trajectory.steps[0].derivatives)
    assert len(optimizer.trajectory.steps[0].derivatives) == 2 * optimizer.probes


def test_what_overflows_for_one_group_is_undone_for_all(model: ToyModel) -> None:
    optimizer = pair(model)
    before = values(optimizer)
    optimizer.param_groups[1]["eps"] = 1e-300
    losses = iter([1e10, -1e10])
    with pytest.raises(LossError, match="no finite difference quotient"):
        optimizer.step(lambda: next(losses))
    assert unchanged(optimizer, before)
    assert [step.derivatives for step in optimizer.trajectory.steps] == [(0.0, 0.0)]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_closure_that_raises_leaves_no_trace(model: ToyModel, error: type[BaseException]) -> None:
    optimizer = pair(model)
    before = values(optimizer)

    def closure() -> float:
        raise error("stop")

    with pytest.raises(error):
        optimizer.step(closure)
    assert unchanged(optimizer, before)
    assert optimizer.steps == 0


def test_calibration_is_of_one_group(model: ToyModel) -> None:
    optimizer = pair(model)
    before = values(optimizer)
    closures = [lambda seed=seed: toy_loss(model, toy_batch(seed=seed)) for seed in (1, 2)]
    found = optimizer.calibrate(closures, group=1)
    assert unchanged(optimizer, before)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, found.lr]
    alone = ZOSGD(attach(toy_model(), roles=("zero",)), seed=3, space="absolute", noise="gaussian")
    other = ZOSGD(optimizer.all_views[1], seed=3, space="absolute", noise="gaussian", lr=1e-4, eps=1e-3, clip=5.0)
    assert other.calibrate(closures) == found
    assert alone.all_views[0].space == "absolute"


def test_a_group_added_before_the_first_step_is_one_from_the_start() -> None:
    models = [toy_model() for _ in range(2)]
    expected = pair(models[0])
    first, second = groups_of(models[1])
    added = ZOSGD([first], lr=1e-2, clip=5.0, seed=3)
    added.add_param_group(second)
    assert [views.space for views in added.all_views] == ["relative", "absolute"]
    steps_of(expected, models[0], 3)
    steps_of(added, models[1], 3)
    assert unchanged(added, values(expected))
    assert added.trajectory == expected.trajectory
    with pytest.raises(ValueError, match="add_param_group after 3 steps, expected before the first"):
        added.add_param_group({"views": attach(models[1], roles=("zero",), include="*.l0.*")})
    assert len(added.all_views) == len(added.param_groups) == len(added.trajectory.groups) == 2


BAD: dict[str, tuple[Callable[[ToyModel], dict[str, Any]], str]] = {
    "twice": (lambda model: {"views": attach(model)}, r"layers\.l0\.d is in two groups. Attach each role once"),
    "no views": (lambda model: {"lr": 1.0}, "a group has views NoneType, expected views that attach returned"),
    "unknown": (lambda model: {"views": zeros(model), "probes": 2}, "a group has 'probes', expected views that"),
    "rate": (lambda model: {"views": zeros(model), "lr": -1.0}, "lr is -1.0, expected at least 0"),
    "space": (lambda model: {"views": zeros(model), "space": "log"}, "space is 'log', expected one of"),
}


def zeros(model: ToyModel) -> Views:
    return attach(model, roles=("zero",))


@pytest.mark.parametrize("bad", BAD)
def test_a_group_that_does_not_fit_changes_nothing(model: ToyModel, bad: str) -> None:
    made, message = BAD[bad]
    first = {"views": attach(model), "lr": 1e-2}
    with pytest.raises(ValueError, match=message):
        ZOSGD([first, made(model)])
    optimizer = ZOSGD([first])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group(made(model))
    assert len(optimizer.all_views) == len(optimizer.param_groups) == len(optimizer.trajectory.groups) == 1
    steps_of(optimizer, model, 1)


def test_a_later_group_that_is_refused_leaves_the_space_of_the_first(model: ToyModel) -> None:
    views = zeros(model)
    with pytest.raises(ValueError, match="lr is nan"):
        ZOSGD([{"views": views, "space": "absolute"}, {"views": attach(model), "lr": float("nan")}])
    assert views.space == "relative"
    with pytest.raises(ValueError, match="got no group, expected views or at least one group"):
        ZOSGD([])


def test_a_layer_without_rows_is_refused_in_any_group(model: ToyModel) -> None:
    both: Any = ("scale", "zero")
    groups = [{"views": attach(model, roles=both, include="*.l0.*")}, {"views": attach(model, include="*.l1.*")}]
    with pytest.raises(UnsupportedLayoutError, match=r"layers\.l1 .*layers\.l1\.m is not attached"):
        ZOSGD(groups, subspace="rows-columns", probes=2)


def test_a_run_of_groups_meets_no_other_views(model: ToyModel) -> None:
    optimizer = pair(model)
    steps_of(optimizer, model, 1)
    fresh = toy_model()
    alone, both = ZOSGD(attach(fresh)), pair(toy_model())
    with pytest.raises(BaseMismatchError, match=r"made of 2 groups of views, got 1\. Pass the views"):
        replay(optimizer.trajectory, attach(fresh))
    with pytest.raises(BaseMismatchError, match="made of 2 groups of views, got 1"):
        alone.load_state_dict(optimizer.state_dict())
    with pytest.raises(BaseMismatchError, match="made of 1 groups of views, got 2"):
        both.resume(replace(alone.trajectory, groups=(optimizer.trajectory.groups[0],)))
    with pytest.raises(BaseMismatchError, match=r"layers\.l0\.d, which does not exist here"):
        replay(optimizer.trajectory, both.all_views[::-1])
    with pytest.raises(ValueError, match="ZOSGD: groups is 2, expected 1: of several, all_views has the views"):
        _ = both.views
    assert both.steps == alone.steps == 0


@either
@pytest.mark.parametrize(
    "name", ["param_groups", "seed", "probes", "moved", "trajectory", "split", "lr", "eps", "clip"]
)
def test_a_state_without_a_part_is_named_and_changes_nothing(made: Callable[..., ZOSGD], name: str) -> None:
    model, twin = toy_model(), toy_model()
    optimizer, expected = made(model), made(twin)
    steps_of(optimizer, model, 2)
    steps_of(expected, twin, 3)
    state = optimizer.state_dict()
    if name == "split" and not optimizer.together:
        return
    found = state["param_groups"][1] if name in ("lr", "eps", "clip") else state
    del found[name]
    with pytest.raises(CheckpointError, match=f"^state_dict: has no '{name}'. Is the file whole"):
        optimizer.load_state_dict(state)
    steps_of(optimizer, model, 1)
    assert unchanged(optimizer, values(expected))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", "x", "'seed' is 'x', which no state has"),
        ("seed", True, "'seed' is True"),
        ("probes", 3, "probes is 3, but the trajectory has 1"),
        ("moved", [1.0], r"2 param_groups and moved \[1.0\], but the trajectory is of 2"),
        ("moved", {}, "'moved' is {}"),
        ("param_groups", [{}], "1 param_groups"),
        ("param_groups", [{}, 1], "has no 'lr'"),
        ("param_groups", [1, 1], "'param_groups' holds 1"),
        ("trajectory", None, "'trajectory' is None"),
    ],
)
def test_a_state_with_another_part_is_refused(name: str, value: object, message: str) -> None:
    model = toy_model()
    optimizer = pair(model)
    steps_of(optimizer, model, 1)
    before = values(optimizer)
    with pytest.raises(CheckpointError, match=message):
        optimizer.load_state_dict({**optimizer.state_dict(), name: value})
    assert unchanged(optimizer, before)
    assert optimizer.steps == 1


def test_a_group_that_is_not_calibrated_stays_at_theta_to_the_bit(model: ToyModel) -> None:
    optimizer = rows_pair(model, split=False)
    steps_of(optimizer, model, 2)
    seen: list[Tensor] = []
    layer = model.layers["l2"]
    forward = layer.forward
    layer.forward = lambda x, *, factors: (seen.append(factors.into), forward(x, factors=factors))[1]  # type: ignore
    x, y = toy_batch(count=8)
    optimizer.calibrate(lambda repeat: (model(x.repeat(repeat, 1)) - y.repeat(repeat, 1)).square().mean(1))
    assert len(seen) > 10
    assert all(bool((factors == 1).all()) for factors in seen)


def test_a_state_whose_settings_do_not_fit_together_changes_nothing(model: ToyModel) -> None:
    optimizer = ZOSGD(attach(model))
    state = optimizer.state_dict()
    state["trajectory"]["estimator"] = "fzoo"
    with pytest.raises(ValueError, match="probes is 1, expected at least 2"):
        optimizer.load_state_dict(state)
    assert optimizer.estimator.name == "two-point"
