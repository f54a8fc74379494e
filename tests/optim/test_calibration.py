"""Self-tuning: what it finds on losses whose answer is known, and that it leaves no trace."""

import itertools
import json
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toy import toy_batch, toy_loss, toy_model
from zoquant import ZOSGD, Calibration, Views, attach
from zoquant.errors import LossError
from zoquant.optim.calibration import GRID, Plan, calibrate
from zoquant.optim.estimators import FZOO, OneSided, RobustClip, TwoPoint
from zoquant.record.rules import SGD, Adam, Momentum, Sign
from zoquant.testing.tensors import same_bits
from zoquant.views.flat_buffer import SPACES
from zoquant.views.model_views import BoundView
from zoquant.views.tensor_views import TensorView

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
NAMES = ("lr", "eps", "clip")


def plan(loss: Callable[[float, int, int], float], **changes: Any) -> Plan:
    """Return a plan over a loss of (signed length, direction, batch)."""
    chosen: dict[str, Any] = {
        "batches": 1, "moved": lambda eps: 1.0, "unit": 1.0, "estimator": TwoPoint(), "rule": SGD(), "probes": 1,
        "eps": 0.5, "lr": 0.5, "clip": None, "choose": NAMES, "schedule": None,
    }  # fmt: skip
    return Plan(loss=lambda direction, eps, batch: loss(eps, direction or 0, batch), **{**chosen, **changes})


def slope(direction: int) -> float:
    return 2.0 * math.cos(1 + 7 * direction)


def test_rounding_asks_for_a_long_probe_and_curvature_for_a_short_one() -> None:
    rng = random.Random(0)
    noisy = calibrate(plan(lambda t, k, _: slope(k) * t + rng.gauss(0, 0.02)))
    curved = calibrate(plan(lambda t, k, _: slope(k) * t + 500 * slope(k) * t**3))
    clean = calibrate(plan(lambda t, k, _: slope(k) * t + t * t))
    assert noisy.eps >= 0.1
    assert curved.eps <= 0.01
    assert clean.eps == 3e-2
    assert [row.eps for row in clean.scan] == list(GRID)
    at = {row.eps: row for row in noisy.scan}
    assert 0.3 < at[1e-2].noise / (0.02 / math.sqrt(2) / 1e-2) < 2
    at = {row.eps: row for row in curved.scan}
    assert at[0.1].bias == pytest.approx(500 * 0.1**2 * at[1e-3].derivative, rel=0.05)


def test_one_sided_probes_see_more_curvature() -> None:
    def loss(t: float, k: int, _: int) -> float:
        return slope(k) * t + 8 * t * t

    assert calibrate(plan(loss, estimator=OneSided())).eps < calibrate(plan(loss)).eps


def test_a_probe_that_moves_nothing_is_not_chosen() -> None:
    found = calibrate(plan(lambda t, k, _: slope(k) * t, moved=lambda eps: min(1.0, eps / 0.2)))
    assert found.eps == 0.3


@pytest.mark.parametrize("rule", [SGD(), Momentum(0.5), Sign(), Adam()])
@pytest.mark.parametrize("probes", [1, 4])
def test_the_lr_makes_a_walk_of_the_stated_length(rule: Any, probes: int) -> None:
    schedule = [1 - n / 200 for n in range(200)]
    found = calibrate(plan(lambda t, k, _: slope(k) * t, rule=rule, probes=probes, schedule=schedule))
    move = found.lr * rule.gain(found.derivative_rms / math.sqrt(probes))
    assert move * math.sqrt(sum(rate**2 for rate in schedule)) == pytest.approx(0.15)
    assert "200 steps" in found.reasons[1]


def test_the_lr_stays_below_the_best_single_step() -> None:
    found = calibrate(plan(lambda t, k, _: slope(k) * t + 500 * t * t, schedule=[1.0] * 4))
    assert found.curvature == pytest.approx(1000)
    assert found.lr == pytest.approx(1 / 1000, rel=0.01)
    assert "best single step" in found.reasons[1]


def test_the_signal_is_what_batches_have_in_common() -> None:
    rng = random.Random(1)
    own = {(k, b): rng.gauss(0, 2) for k in range(8) for b in range(2)}
    found = calibrate(plan(lambda t, k, b: own[k, b] * t, batches=2))
    shared = calibrate(plan(lambda t, k, b: slope(k) * t, batches=2))
    assert found.signal is not None
    assert shared.signal is not None
    assert found.signal < 0.5 < 0.99 < shared.signal
    assert calibrate(plan(lambda t, k, b: slope(k) * t)).signal is None


def test_given_numbers_are_kept() -> None:
    found = calibrate(plan(lambda t, k, _: slope(k) * t, choose=("clip",), eps=0.02, lr=0.7))
    assert (found.eps, found.lr) == (0.02, 0.7)
    assert found.clip == pytest.approx(6 * found.derivative_median)
    kept = calibrate(plan(lambda t, k, _: slope(k) * t, choose=("lr",), clip=RobustClip()))
    assert kept.clip == RobustClip()
    assert len(kept.scan) == 1


def test_losses_that_say_nothing() -> None:
    with pytest.raises(LossError, match=r"no probe of eps=0\.03 changes the loss of 2"):
        calibrate(plan(lambda t, k, _: 2.0))

    def raising(t: float, k: int, _: int) -> float:
        if t:
            raise LossError("not finite")
        return 1.0

    with pytest.raises(LossError, match="no probe has a finite loss, at any eps"):
        calibrate(plan(raising))


def test_an_eps_with_an_infinite_loss_is_passed_over() -> None:
    def loss(t: float, k: int, _: int) -> float:
        if abs(t) > 0.02:
            raise LossError("not finite")
        return slope(k) * t

    found = calibrate(plan(loss))
    assert found.eps == 1e-2
    assert json.loads(json.dumps(found.to_dict()))["scan"][-1]["derivative"] is None


def bits(views: Views) -> list[Tensor]:
    return [view.read() for view in views]


@pytest.mark.parametrize("estimator", [TwoPoint(), OneSided(), FZOO()])
def test_the_model_is_bit_for_bit_what_it_was(estimator: Any) -> None:
    model = toy_model()
    optimizer = ZOSGD(attach(model), estimator=estimator, probes=2)
    optimizer.step(lambda: toy_loss(model, toy_batch()))
    before = bits(optimizer.views)
    found = optimizer.calibrate([lambda b=b: toy_loss(model, toy_batch(seed=b)) for b in range(2)])
    assert all(same_bits(a, b) for a, b in zip(bits(optimizer.views), before, strict=True))
    assert optimizer.steps == 1
    group = optimizer.param_groups[0]
    assert (found.lr, found.eps, found.clip) == (group["lr"], group["eps"], group["clip"])
    calls = itertools.count()
    with pytest.raises(KeyboardInterrupt):
        optimizer.calibrate(lambda: (_ for _ in ()).throw(KeyboardInterrupt) if next(calls) > 9 else float(next(calls)))
    assert all(same_bits(a, b) for a, b in zip(bits(optimizer.views), before, strict=True))
    assert (found.lr, found.eps, found.clip) == (group["lr"], group["eps"], group["clip"])
    with pytest.raises(ValueError, match="ZOSGD: choose is"):
        optimizer.calibrate(lambda: 1.0, choose=("rate",))
    with pytest.raises(ValueError, match=r"ZOSGD: closure is \[\], expected one, or one for each of several batches"):
        optimizer.calibrate([])


def test_a_closure_that_draws_batches_is_told_so() -> None:
    model = toy_model()
    draw = itertools.count()
    found = ZOSGD(attach(model)).calibrate(lambda: toy_loss(model, toy_batch(seed=next(draw))))
    assert found.repeat > 0
    assert "the loss changes by" in found.reasons[-1]
    steady = toy_model()
    assert ZOSGD(attach(steady)).calibrate(lambda: toy_loss(steady, toy_batch())).repeat == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("space", SPACES)
def test_a_run_without_a_number_works_at_any_scale(dtype: torch.dtype, scale: float, space: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    live = ((torch.rand(40, generator=generator) + 0.5) * scale).to(dtype)
    views = Views([BoundView("d", TensorView("d", "scale", live), "test")], coupled=False)
    target = (torch.rand(40, generator=generator) + 0.5).double()
    optimizer = ZOSGD(views, space=space, probes=2)

    def loss() -> float:
        return float((live.double() / scale - target).square().mean())

    first = loss()
    steps = 60
    found = optimizer.calibrate(loss, schedule=[1 - n / steps for n in range(steps)])
    assert isinstance(found, Calibration)
    assert max(row.moved for row in found.scan if row.eps == found.eps) > 0.5
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(steps):
            result = optimizer.step(loss)
            rate.step()
    assert math.isfinite(result.loss)
    assert loss() < 0.95 * first


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": []}, r"schedule is \[\], expected None, or rates of which one is above 0"),
        ({"schedule": [0.0]}, r"schedule is \[0\.0\], expected None"),
        ({"group": 1}, "group is 1, expected from 0 to 0"),
        ({"group": -1}, "group is -1, expected from 0 to 0"),
    ],
)
def test_what_cannot_be_calibrated_is_named(wrong: dict[str, Any], message: str) -> None:
    optimizer = ZOSGD(attach(toy_model()))
    before = dict(optimizer.param_groups[0])
    with pytest.raises(ValueError, match=message):
        optimizer.calibrate(lambda: 0.0, **wrong)
    assert all(optimizer.param_groups[0][name] == before[name] for name in NAMES)


def test_derivatives_beyond_floats_are_refused() -> None:
    with pytest.raises(LossError, match="calibration: "):
        calibrate(plan(lambda t, k, _: 1e200 * slope(k) * t))
    with pytest.raises(LossError, match=r"have no finite mean square\. Scale the loss down"):
        calibrate(plan(lambda t, k, _: 1e200 * slope(k) * t, choose=("lr", "clip")))
